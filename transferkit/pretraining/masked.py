"""Masked autoencoder: a vision transformer sees a quarter of the patches and draws the others."""

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
from transferkit.pretraining.method import Batch, Method, Move, Phase

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
    """Put patches (N, L, h * w * 3) together to pictures (N, 3, H, W): undoes `patches_of`."""
    h, w = size_px
    laid = patches.reshape(len(patches), *grid, h, w, 3)
    return laid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, grid[0] * h, grid[1] * w)


def choose_visible(count: int, patches: int, ratio: float) -> Tensor:
    """Draw which patches each picture shows: positions (N, V), ascending; at least one is hidden.

    ratio: share that is hidden, 0..1.
    """
    shown = min(max(1, round(patches * (1 - ratio))), patches - 1)
    order = torch.rand(count, patches).argsort(dim=1)
    return order[:, :shown].sort(dim=1).values


def normalised_patches(patches: Tensor) -> Tensor:
    """Bring every patch (..., P) to mean 0 and variance 1: what is drawn is its structure."""
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / (patches.var(dim=-1, keepdim=True) + EPS).sqrt()


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed positions (1, L, width) of a grid, a half of the width for each axis.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5, in two axes.
    """
    quarter = width // 4
    rates = torch.exp(-math.log(10_000) * torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)[None]


class PatchDecoder(nn.Module):
    """Tokens of the visible patches (N, V, C) to pixels of all patches (N, L, P)."""

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
        """Return pixels (N, L, P); visible: (N, V), where each token belongs."""
        embedded = self.embed(tokens)
        every = self.hidden.expand(len(tokens), self.positions.shape[1], -1)
        place = visible[..., None].expand_as(embedded)
        every = every.scatter(1, place, embedded.to(every.dtype))
        drawn: Tensor = self.draw(self.norm(self.blocks(every + self.positions)))
        return drawn


def visible_tokens(vit: VisionTransformer, images: Tensor, visible: Tensor) -> Tensor:
    """Run a transformer on some patches alone: normalised pictures -> tokens (N, V, C)."""
    model: Any = vit
    tokens = model._pos_embed(model.patch_embed(images))  # (N, prefix + L, C)
    prefix, rest = tokens.split(
        [model.num_prefix_tokens, tokens.shape[1] - model.num_prefix_tokens], 1
    )
    kept = rest.gather(1, visible[..., None].expand(-1, -1, rest.shape[2]))
    seen = model.norm(model.blocks(model.norm_pre(torch.cat([prefix, kept], dim=1))))
    found: Tensor = seen[:, model.num_prefix_tokens :]
    return found


def mae(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw the patches that were hidden, from the few that were not.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """
    vit, grid, size_px = vision_transformer(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = PatchDecoder(vit.embed_dim, grid, 3 * size_px[0] * size_px[1])
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    patches = grid[0] * grid[1]

    def drawn_and_hidden(images: Tensor) -> tuple[Tensor, Tensor]:
        visible = choose_visible(len(images), patches, options.mask_ratio or MASK_RATIO).to(
            images.device
        )
        tokens = visible_tokens(vit, encoder.normalized(images), visible)
        hidden = torch.ones(len(images), patches, device=images.device).scatter(1, visible, 0.0)
        return decoder(tokens, visible), hidden

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        drawn, hidden = drawn_and_hidden(images)
        target = normalised_patches(patches_of(images, size_px))
        errors = (drawn - target).square().mean(dim=-1)  # (N, L)
        yield Move((errors * hidden).sum() / hidden.sum())

    def show(images: Tensor) -> Mapping[str, Tensor]:
        drawn, hidden = drawn_and_hidden(images)
        real = patches_of(images, size_px)
        spread = (real.var(dim=-1, keepdim=True) + EPS).sqrt()
        pixels = drawn * spread + real.mean(dim=-1, keepdim=True)
        mask = hidden[..., None]
        rows = [HIDDEN_GREY * mask + real * (1 - mask), pixels * mask + real * (1 - mask), real]
        return {"reconstructions": torch.stack([picture_of(row, size_px, grid) for row in rows])}

    phase = Phase("fill in", {"network": networks}, learn)
    return Method(networks, (phase,), lr=1e-3, weight_decay=0.05, hyper={"beta2": 0.95}, show=show)


def vision_transformer(
    encoder: Encoder,
) -> tuple[VisionTransformer, tuple[int, int], tuple[int, int]]:
    """Return a backbone's transformer, its grid of patches, and a patch's size in pixels.

    Raises a usage error, with advice, where it is none, or where the picture has too few patches.
    """
    vit = encoder.backbone
    if not isinstance(vit, VisionTransformer):
        raise usage_error(
            "--method mae needs a vision transformer: its blocks run on the visible patches alone",
            f"this backbone is a {type(vit).__name__}",
            "use --backbone vit_tiny_patch16_224, or for this backbone --method inpainting",
        )
    size_px = tuple(vit.patch_embed.patch_size)
    grid = tuple(vit.patch_embed.grid_size)
    if grid[0] * grid[1] < FEWEST_PATCHES:
        side = encoder.preprocessing.width_px
        raise usage_error(
            f"an input of {side} px has {grid[0]} × {grid[1]} patches of {size_px[0]} px: there is "
            "too little to hide",
            "",
            f"enlarge it with --image-size {8 * size_px[0]}, or take a backbone of smaller patches",
        )
    return vit, grid, size_px
