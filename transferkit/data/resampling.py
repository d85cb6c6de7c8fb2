"""Part of a resized picture, equal to that part of what Pillow makes of the whole.

Source: Pillow's Resample.c: weights of a filter at the centre of each new pixel, normalised, as
fixed-point numbers of 22 bits; the sums are rounded to 8 bits.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL.Image import Image, Resampling, fromarray

_BITS = 32 - 8 - 2


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _sinc(x: np.ndarray) -> np.ndarray:
    angle = np.where(x == 0, 1.0, x) * math.pi
    return np.where(x == 0, 1.0, np.sin(angle) / angle)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


_FILTERS: dict[int, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Resampling.BILINEAR: (1.0, _bilinear),
    Resampling.BICUBIC: (2.0, _bicubic),
    Resampling.LANCZOS: (3.0, _lanczos),
}
"""Filter to its support in old pixels, and its weights."""


def taps(
    old: int, new: int, part: tuple[int, int], resample: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and weights of the old pixels that make the new ones first..last, (n, taps).

    old, new: lengths of the whole side. part: first and last. Weights are int64 in units of 2^-22;
    positions lie within the picture, with weight 0 where there is no further one.
    """
    reach, weigh = _FILTERS[resample]
    scale = old / new
    stretch = max(scale, 1.0)
    support = reach * stretch
    centre = (np.arange(*part) + 0.5) * scale  # (n,)
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum(np.trunc(centre + support + 0.5).astype(np.int64), old)
    positions = first[:, None] + np.arange(math.ceil(support) * 2 + 1)  # (n, taps)
    inside = positions < last[:, None]
    weights = weigh((positions - centre[:, None] + 0.5) * (1.0 / stretch)) * inside
    sums = np.cumsum(weights, axis=1)[:, -1:]
    weights = np.divide(weights, sums, out=weights, where=sums != 0) * (1 << _BITS)
    fixed = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64) * inside
    return np.minimum(positions, old - 1), fixed


def resized_part(
    image: Image,
    axis: int,
    new: int,
    part: tuple[int, int],
    resample: Resampling,
    cut: tuple[int, int] | None = None,
) -> Image:
    """Return the columns (axis 0) or rows (1) `part` of an RGB picture resized to `new` of them.

    cut: the picture is a part itself: where it begins along the axis, and the whole's length.
    """
    begin, old = cut or (0, image.size[axis])
    positions, weights = taps(old, new, part, resample)
    first, last = int(positions.min()), int(positions.max()) + 1
    near, far = first - begin, last - begin
    box = (near, 0, far, image.height) if axis == 0 else (0, near, image.width, far)
    used = np.asarray(image.crop(box))  # the whole as an array would be a second picture
    pixels = np.moveaxis(used, 1 - axis, 0)  # (rows or columns, the others, 3)
    sums = np.full((len(positions), *pixels.shape[1:]), 1 << (_BITS - 1), dtype=np.int64)
    for position, weight in zip(positions.T - first, weights.T, strict=True):
        sums += pixels[position] * weight[:, None, None]
    resized = np.moveaxis((sums >> _BITS).clip(0, 255).astype(np.uint8), 0, 1 - axis)
    return fromarray(np.ascontiguousarray(resized))
