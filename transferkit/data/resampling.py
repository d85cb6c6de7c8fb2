"""Part of a resized picture, equal to that part of what Pillow makes of the whole.

Source: Pillow's Resample.c: weights of a filter at the centre of each new pixel, normalised, as
fixed-point numbers of 22 bits; the sums are rounded to 8 bits.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

_BITS = 32 - 8 - 2


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    def sinc(t: np.ndarray) -> np.ndarray:
        angle = np.where(t == 0, 1.0, t) * math.pi
        return np.where(t == 0, 1.0, np.sin(angle) / angle)

    return np.where((x >= -3) & (x < 3), sinc(x) * sinc(x / 3), 0.0)


_FILTERS: dict[int, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    Image.Resampling.BILINEAR: (1.0, _bilinear),
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.LANCZOS: (3.0, _lanczos),
}
"""Filter to its reach in old pixels, and its weights."""


def taps(
    old: int, new: int, part: tuple[int, int], resample: Image.Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Return which old pixels make the new ones first..last, and their weights, (n, taps) each.

    old, new: lengths of the whole side. Weights are int64 in units of 2^-22; places within the
    picture, with weight 0 where there is no further one.
    """
    reach, weigh = _FILTERS[resample]
    scale = old / new
    stretch = max(scale, 1.0)
    support = reach * stretch
    centre = (np.arange(*part) + 0.5) * scale  # (n,)
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum(np.trunc(centre + support + 0.5).astype(np.int64), old)
    offsets = np.arange(math.ceil(support) * 2 + 1)
    places = first[:, None] + offsets  # (n, taps)
    inside = places < last[:, None]
    weights = weigh((places - centre[:, None] + 0.5) * (1.0 / stretch)) * inside
    sums = np.cumsum(weights, axis=1)[:, -1:]
    weights = np.divide(weights, sums, out=weights, where=sums != 0) * (1 << _BITS)
    fixed = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int64) * inside
    return np.minimum(places, old - 1), fixed


def resized_part(
    image: Image.Image,
    axis: int,
    new: int,
    part: tuple[int, int],
    resample: Image.Resampling,
    cut: tuple[int, int] | None = None,
) -> Image.Image:
    """Return the columns (axis 0) or rows (1) `part` of an RGB picture resized to `new` of them.

    cut: the picture is a part itself: where it begins along the axis, and the whole's length.
    """
    begin, old = cut or (0, image.size[axis])
    places, weights = taps(old, new, part, resample)
    pixels = np.asarray(image)  # (H, W, 3)
    lines = pixels if axis == 1 else pixels.transpose(1, 0, 2)
    sums = np.full((len(places), *lines.shape[1:]), 1 << (_BITS - 1), dtype=np.int64)
    for place, weight in zip(places.T - begin, weights.T, strict=True):
        sums += lines[place] * weight[:, None, None]
    made = (sums >> _BITS).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(made if axis == 1 else made.transpose(1, 0, 2)))
