"""Pretext tasks that reconstruct what was removed from a picture: its colours, or regions."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from transferkit.config import Pretraining
from transferkit.pretraining.autoencoders import LOSSES, make_decoder
from transferkit.pretraining.colours import LUMA
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

MASK_RATIO = 0.25
BLOCKS = 4
"""Masked squares in a picture; they may overlap."""


def grey(images: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) in greyscale, of the same brightness."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def colorization(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict the colours of a greyscale picture; its brightness is given.

    Source: Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016; as a regression:
    Larsson, Maire and Shakhnarovich, "Learning Representations for Automatic Colorization", 2016.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]

    def coloured(inputs: Tensor) -> Tensor:
        outputs = decoder(encoder.maps(inputs))
        coloured: Tensor = outputs - grey(outputs) + inputs
        return coloured

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        yield Objective(compare(coloured(grey(images)), images))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        inputs = grey(images)
        return {"colours": torch.stack([images, inputs, coloured(inputs).clamp(0, 1)])}

    return Method(networks, (Phase("colour", {"network": networks}, learn),), show=show)


def holes(count: int, height: int, width: int, ratio: float) -> Tensor:
    """Draw masks (N, 1, H, W), True where hidden: BLOCKS squares of `ratio` of the area."""
    side_y, side_x = (
        max(1, min(side, round(side * (ratio / BLOCKS) ** 0.5))) for side in (height, width)
    )
    tops = torch.randint(height - side_y + 1, (count, BLOCKS, 1, 1))
    lefts = torch.randint(width - side_x + 1, (count, BLOCKS, 1, 1))
    rows = torch.arange(height).view(1, 1, -1, 1)
    columns = torch.arange(width).view(1, 1, 1, -1)
    inside = (rows >= tops) & (rows < tops + side_y)
    inside = inside & (columns >= lefts) & (columns < lefts + side_x)
    return inside.any(dim=1, keepdim=True)


def inpainting(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Fill in the regions of a picture that are masked by its mean colour.

    Only masked pixels count in the loss. Source: Pathak et al., "Context Encoders: Feature Learning
    by Inpainting", CVPR 2016, without the adversarial loss.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]
    ratio = options.mask_ratio or MASK_RATIO

    def masked(images: Tensor) -> tuple[Tensor, Tensor]:
        mask = holes(len(images), images.shape[2], images.shape[3], ratio).to(images.device)
        return torch.where(mask, images.mean(dim=(2, 3), keepdim=True), images), mask

    def learn(batch: Batch) -> Iterator[Objective]:
        (images,) = batch.views
        inputs, mask = masked(images)
        filled = torch.where(mask, decoder(encoder.maps(inputs)), images)
        share = mask.float().mean()  # normalises the loss to the masked pixels
        yield Objective(compare(filled, images) / share, figures={"hidden": float(share)})

    def show(images: Tensor) -> Mapping[str, Tensor]:
        inputs, mask = masked(images)
        filled = torch.where(mask, decoder(encoder.maps(inputs)), images)
        return {"filled_in": torch.stack([images, inputs, filled])}

    return Method(networks, (Phase("fill", {"network": networks}, learn),), show=show)
