"""Auxiliary tasks that draw what was taken from a picture: its colours, or a part of it."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from transferkit.config import Pretraining
from transferkit.pretraining.autoencoders import LOSSES, make_decoder
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in brightness: ITU-R Recommendation BT.601."""
MASK_RATIO = 0.25
BLOCKS = 4
"""Regions that are taken from a picture: as many squares, which may overlap."""


def grey(images: Tensor) -> Tensor:
    """Return pictures (N, 3, H, W) without colour, of the same brightness."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def colorization(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Draw the colours of a picture that is seen in grey; its brightness is given.

    Source: Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016; as a regression:
    Larsson, Maire and Shakhnarovich, "Learning Representations for Automatic Colorization", 2016.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]

    def coloured(seen: Tensor) -> Tensor:
        drawn = decoder(encoder.maps(seen))
        coloured: Tensor = drawn - grey(drawn) + seen
        return coloured

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        yield Move(compare(coloured(grey(images)), images))

    def show(images: Tensor) -> Mapping[str, Tensor]:
        seen = grey(images)
        return {"colours": torch.stack([images, seen, coloured(seen).clamp(0, 1)])}

    return Method(networks, (Phase("colour", {"network": networks}, learn),), show=show)


def holes(count: int, height: int, width: int, ratio: float) -> Tensor:
    """Draw which pixels are hidden: (N, 1, H, W) bool, BLOCKS squares of `ratio` of the area."""
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
    """Fill in the parts of a picture that are hidden by its mean colour.

    Only what was hidden counts. Source: Pathak et al., "Context Encoders: Feature Learning by
    Inpainting", CVPR 2016, without the adversarial part.
    """
    decoder = make_decoder(encoder, seed)
    networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    compare = LOSSES[options.loss]
    ratio = options.mask_ratio or MASK_RATIO

    def hidden(images: Tensor) -> tuple[Tensor, Tensor]:
        mask = holes(len(images), images.shape[2], images.shape[3], ratio).to(images.device)
        return torch.where(mask, images.mean(dim=(2, 3), keepdim=True), images), mask

    def learn(batch: Batch) -> Iterator[Move]:
        (images,) = batch.views
        seen, mask = hidden(images)
        filled = torch.where(mask, decoder(encoder.maps(seen)), images)
        share = mask.float().mean()  # so that the loss is that of a hidden pixel
        yield Move(compare(filled, images) / share, figures={"hidden": float(share)})

    def show(images: Tensor) -> Mapping[str, Tensor]:
        seen, mask = hidden(images)
        filled = torch.where(mask, decoder(encoder.maps(seen)), images)
        return {"filled_in": torch.stack([images, seen, filled])}

    return Method(networks, (Phase("fill", {"network": networks}, learn),), show=show)
