"""Random colours of views, as one linear map for each picture, applied to whole batches."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness that people see (ITU-R BT.601)."""
UNCHANGED = (1.0, 1.0, 1.0, 0.0, 0.0)
"""Factors of brightness, contrast and saturation; turn of the hue, 0..1; whether it turns grey."""
STRENGTH, HUE = 0.4, 0.1
JITTERED, GREY = 0.8, 0.2

_TO_YIQ = torch.tensor(  # the luma above, and two axes across which the hue turns
    [LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], dtype=torch.float64
)
_TO_RGB = torch.linalg.inv(_TO_YIQ)


def drawn_colours(generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw how a view's colours change: (5,), see UNCHANGED."""
    colours = np.array(UNCHANGED, dtype=np.float32)
    if generator.random() < JITTERED:
        colours[:3] += STRENGTH * generator.uniform(-1, 1, 3)
        colours[3] = generator.uniform(-HUE, HUE)
    colours[4] = generator.random() < GREY
    return colours


def recoloured(images: Tensor, colours: Tensor) -> Tensor:
    """Change the colours of pictures (N, 3, H, W), values 0..1, as the rows of (N, 5) say.

    The factors mean what they mean to torchvision's adjust_brightness, adjust_contrast and
    adjust_saturation, in this order; only at the end are values cut to 0..1, so that all steps are
    one matrix product. The hue turns in the YIQ space, which keeps the brightness.
    """
    brightness, contrast, saturation, hue, grey = colours.to(images).unbind(1)
    luma = torch.tensor(LUMA).to(images)
    to_grey = luma.expand(3, 3)  # every row is the luma
    keep = torch.eye(3).to(images)
    # (N, 3, 3), from the last step to the first
    matrix = torch.lerp(keep, to_grey, grey[:, None, None]) @ turned_hues(hue)
    matrix = matrix @ (to_grey + saturation[:, None, None] * (keep - to_grey))
    matrix = matrix * (contrast * brightness)[:, None, None]
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, 3), no copy in channels_last
    mean = pixels.mean(dim=1) @ luma
    shift = (1 - contrast) * brightness * mean  # a grey, which all later steps leave as it is
    found = torch.baddbmm(shift[:, None, None], pixels, matrix.mT).clamp_(0, 1)
    return found.unflatten(1, images.shape[2:]).permute(0, 3, 1, 2)


def turned_hues(turns: Tensor) -> Tensor:
    """Return matrices (N, 3, 3) that turn the hue by shares (N,) of a full circle."""
    angles = 2 * math.pi * turns
    cos, sin = angles.cos(), angles.sin()
    turn = torch.zeros(len(turns), 3, 3).to(turns)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = sin, -sin
    return _TO_RGB.to(turns) @ turn @ _TO_YIQ.to(turns)
