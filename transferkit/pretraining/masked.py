"""Masked autoencoder (MAE): a vision transformer reconstructs the masked patches from the rest."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

DECODER_BLOCKS, DECODER_WIDTH, DECODER_HEADS = 2, 128, 4
FEWEST_PATCHES = 4
MASK_RATIO = 0.75
HIDDEN_GREY = 0.5
EPS = 1e-6


def patches_of(images: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Cut pictures (N, C, H, W) into patches (N, L, h * w * C), row by row."""
    count, channels, height, width = images.shape
    h, w = size_px
    cut = images.reshape(count, channels, height // h, h, width // w, w)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, h * w * channels)


def picture_of(patches: Tensor, size_px: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Assemble patches (N, L, h * w * 3) to pictures (N, 3, H, W): the inverse of `patches_of`."""
    h, w = size_px
    laid = patches.reshape(len(patches), *grid, h, w, 3)
    return laid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, grid[0] * h, grid[1] * w)


def choose_visible(count: int, patches: int, ratio: float) -> Tensor:
    """Draw each picture's visible patches: positions (N, V), ascending; at least one is masked.

    ratio: share that is masked, 0..1.
    """
    visible = min(max(1, round(patches * (1 - ratio))), patches - 1)
    order = torch.rand(count, patches).argsort(dim=1)
    return order[:, :visible].sort(dim=1).values


def normalised_patches(patches: Tensor) -> Tensor:
    """Bring every patch (..., P) to mean 0 and variance 1, so that its structure is the target."""
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + EPS).sqrt()


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed sine-cosine position embeddings (1, L, width), half of the width per axis.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5, in two axes.
    """
    quarter = width // 4
    rates = torch.exp(-math.log(10_000) * torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)[None]


class PatchDecoder(nn.Module):
    """Maps tokens of the visible patches (N, V, C) to pixels of all patches (N, L, P)."""

    positions: Tensor

    def __init__(self, channels: int, grid: tuple[int, int], pixels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, DECODER_WIDTH)
        self.hidden = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        positions = sine_positions(grid, DECODER_WIDTH)
        self.register_buffer("positions", positions, persistent=False)
        blocks = [Block(DECODER_WIDTH, DECODER_HEADS) for _ in range(DECODER_BLOCKS)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(DECODER_WIDTH)
        self.draw = nn.Linear(DECODER_WIDTH, pixels)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return pixels (N, L, P); visible: positions (N, V) of the tokens."""
        embedded = self.embed(tokens)
        mask_tokens = self.hidden.expand(len(tokens), self.positions.shape[1], -1)
        place = visible[..., None].expand_as(embedded)
        sequence = mask_tokens.scatter(1, place, embedded.to(mask_tokens.dtype))
        pixels: Tensor = self.draw(self.norm(self.blocks(sequence + self.positions)))
        return pixels


def visible_tokens(vit: VisionTransformer, images: Tensor, visible: Tensor) -> Tensor:
    """Run a transformer on the visible patches alone: normalised pictures -> tokens (N, V, C)."""
    model: Any = vit
    tokens = model._pos_embed(model.patch_embed(images))  # (N, prefix + L, C)
    count = model.num_prefix_tokens
    prefix, rest = tokens[:, :count], tokens[:, count:]
    kept = rest.gather(1, visible[..., None].expand(-1, -1, rest.shape[2]))
    outputs = model.norm(model.blocks(model.norm_pre(torch.cat([prefix, kept], dim=1))))
    without_prefix: Tensor = outputs[:, count:]
    return without_prefix


def mae(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Reconstruct the masked patches from the few visible ones.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """
    vit, grid, size_px = vision_transformer(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = PatchDecoder(vit.embed_dim, grid, 3 * size_px[0] * size_px[1])
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    patches, ratio = grid[0] * grid[1], options.mask_ratio or MASK_RATIO

    def predicted_and_mask(images: Tensor) -> tuple[Tensor, Tensor]:
        visible = choose_visible(len(images), patches, ratio).to(images.device)
        tokens = visible_tokens(vit, encoder.normalized(images), visible)
        mask = torch.ones(len(images), patches, device=images.device).scatter(1, visible, 0.0)
        return decoder(tokens, visible), mask

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        predicted, mask = predicted_and_mask(images)
        target = normalised_patches(patches_of(images, size_px))
        errors = (predicted - target).square().mean(dim=-1)  # (N, L)
        yield Objective((errors * mask).sum() / mask.sum())

    def show(images: Tensor) -> Mapping[str, Tensor]:
        predicted, mask = predicted_and_mask(images)
        real = patches_of(images, size_px)
        std = (real.var(dim=-1, keepdim=True) + EPS).sqrt()
        pixels = predicted * std + real.mean(dim=-1, keepdim=True)
        mask = mask[..., None]
        rows = [HIDDEN_GREY * mask + real * (1 - mask), pixels * mask + real * (1 - mask), real]
        return {"reconstructions": torch.stack([picture_of(row, size_px, grid) for row in rows])}

    phase = Phase("fill in", {"network": networks}, learn)
    return Method(networks, (phase,), lr=1e-3, weight_decay=0.05, hyper={"beta2": 0.95}, show=show)


def vision_transformer(
    encoder: Encoder,
) -> tuple[VisionTransformer, tuple[int, int], tuple[int, int]]:
    """Return the backbone as a transformer, its grid of patches, and a patch's size in pixels.

    Raises a usage error if it is none, or if the input has too few patches.
    """
    vit = encoder.backbone
    if not isinstance(vit, VisionTransformer):
        raise usage_error(
            "--method mae needs a vision transformer: its blocks run on the visible patches alone",
            f"this backbone is a {type(vit).__name__}",
            "use --backbone vit_tiny_patch16_224, or for this backbone --method inpainting",
        )
    size_px, grid = tuple(vit.patch_embed.patch_size), tuple(vit.patch_embed.grid_size)
    if grid[0] * grid[1] < FEWEST_PATCHES:
        side = encoder.preprocessing.width_px
        what = f"an input of {side} px has only {grid[0]} × {grid[1]} patches of {size_px[0]} px"
        remedy = f"use --image-size {8 * size_px[0]}, or a backbone of smaller patches"
        raise usage_error(what, "", remedy)
    return vit, grid, size_px
