"""Colour jitter of views: one affine colour map per picture, applied to whole batches."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the perceived brightness (ITU-R BT.601)."""
UNCHANGED = (1.0, 1.0, 1.0, 0.0, 0.0)
"""Factors of brightness, contrast, saturation; hue rotation in turns; 1 for greyscale, else 0."""
STRENGTH, HUE = 0.4, 0.1
JITTERED, GREY = 0.8, 0.2

_TO_YIQ = torch.tensor(  # luma, and the two axes of the plane in which the hue rotates
    [LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], dtype=torch.float64
)
_TO_RGB = torch.linalg.inv(_TO_YIQ)


def drawn_colours(generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw the parameters of a view's colour jitter: (5,), see UNCHANGED."""
    colours = np.array(UNCHANGED, dtype=np.float32)
    if generator.random() < JITTERED:
        colours[:3] += STRENGTH * generator.uniform(-1, 1, 3)
        colours[3] = generator.uniform(-HUE, HUE)
    colours[4] = generator.random() < GREY
    return colours


def recoloured(images: Tensor, colours: Tensor) -> Tensor:
    """Jitter the colours of pictures (N, 3, H, W), values 0..1, by parameters (N, 5).

    The factors are those of torchvision's adjust_brightness, adjust_contrast and
    adjust_saturation, in this order; values are clipped to 0..1 only at the end, so that all steps
    are one matrix product. The hue rotates in YIQ space, which preserves the brightness.
    """
    brightness, contrast, saturation, hue, grey = colours.to(images).unbind(1)
    luma = torch.tensor(LUMA).to(images)
    to_grey = luma.expand(3, 3)  # every row is the luma
    keep = torch.eye(3).to(images)
    # (N, 3, 3), from the last step to the first
    matrix = torch.lerp(keep, to_grey, grey[:, None, None]) @ hue_rotations(hue)
    matrix = matrix @ (to_grey + saturation[:, None, None] * (keep - to_grey))
    matrix = matrix * (contrast * brightness)[:, None, None]
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, 3), no copy in channels_last
    mean = pixels.mean(dim=1) @ luma
    shift = (1 - contrast) * brightness * mean  # a grey, which no later step changes
    outputs = torch.baddbmm(shift[:, None, None], pixels, matrix.mT).clamp_(0, 1)
    return outputs.unflatten(1, images.shape[2:]).permute(0, 3, 1, 2)


def hue_rotations(turns: Tensor) -> Tensor:
    """Return matrices (N, 3, 3) that rotate the hue by (N,) turns."""
    angles = 2 * math.pi * turns
    cos, sin = angles.cos(), angles.sin()
    turn = torch.zeros(len(turns), 3, 3).to(turns)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = sin, -sin
    return _TO_RGB.to(turns) @ turn @ _TO_YIQ.to(turns)
