"""Values of more than 8 bits: how they become 0 to 255, on one scale for a whole data set."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageFile

Range = tuple[float, float]
"""The values that become 0 and 255."""

FULL = (0.0, 65535.0)
FULL_SCALES = (1.0, 255.0, 65535.0)
_TAIL = 0.001
"""Share of a picture's values, at either end, that is ignored: hot and dead pixels."""
_MOST_MEASURED = 2**18


def measured_range(values: np.ndarray) -> Range | None:
    """Return the range of a picture's finite values, without a thousandth at either end."""
    step = max(1, values.size // _MOST_MEASURED) | 1  # odd, so that it meets every column
    with np.errstate(invalid="ignore"):
        sample = values.reshape(-1)[::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    low, high = np.quantile(sample, (_TAIL, 1 - _TAIL), method="nearest")
    return float(low), float(high)


def common_range(ranges: Sequence[Range]) -> Range | None:
    """Return one range for pictures of these ranges, None for none.

    A full scale (0..1, 0..255, 0..65535) where they fill more than half of it; else theirs, without
    the outermost fiftieth of the pictures.
    """
    if not ranges:
        return None
    lows, highs = np.array(ranges).T
    low = float(np.quantile(lows, 0.02, method="lower"))
    high = float(np.quantile(highs, 0.98, method="higher"))
    for full in FULL_SCALES:
        if low >= 0 and full / 2 < high <= full:
            return 0.0, full
    return low, high if high > low else low + 1.0


def to_8_bit(values: np.ndarray, scale: Range) -> np.ndarray:
    """Map values (H, W) or (H, W, B) to 0..255; NaN is black, infinite values are at the ends."""
    low, high = scale
    shades = np.empty(values.shape, dtype=np.uint8)
    for rows in strips(values):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            part = values[rows].astype(np.float64)
        part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        shades[rows] = np.rint(((part - low) / (high - low or 1.0)).clip(0, 1) * 255)
    return shades


def own_range(values: np.ndarray, *, full_16: bool) -> Range:
    """Return the range of one picture for which no other is given.

    full_16: its values are 16-bit ones: 0..65535. Floats within 0..1, and all within 0..255: that.
    Integers within 0..65535: that. Everything else: its own finite minimum and maximum.
    """
    if full_16:
        return FULL
    low, high = np.inf, -np.inf
    for rows in strips(values):
        finite = values[rows][np.isfinite(values[rows])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    low, high = (low, high) if low <= high else (0.0, 0.0)
    scales = FULL_SCALES[:2] if values.dtype.kind == "f" else FULL_SCALES[1:]
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    return (0.0, fitting[0]) if fitting else (low, high)


def strips(values: np.ndarray) -> Iterator[slice]:
    """Yield rows of about a million pixels, so that a large picture needs little extra memory."""
    rows = max(1, 2**20 // values.shape[1])
    count = len(values)
    return (slice(first, min(first + rows, count)) for first in range(0, count, rows))


def all_values(image: Image.Image) -> np.ndarray:
    """Return the values (H, W) of a grey picture, in the mode's own type, without a third copy."""
    values = np.empty((image.height, image.width), np.asarray(image.crop((0, 0, 1, 1))).dtype)
    for rows in strips(values):
        values[rows] = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
    return values


def is_deep_grey(image: Image.Image) -> bool:
    """Whether Pillow keeps a picture as grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a PNG, not yet loaded, has 16 bits of which Pillow reads the upper 8 only."""
    tiles = getattr(image, "tile", ()) if image.format == "PNG" else ()
    return any(tile[3] in ("RGB;16B", "RGBA;16B", "LA;16B") for tile in tiles)


def all_16_bits(image: Image.Image, twin: ImageFile.ImageFile) -> np.ndarray:
    """Return the values (H, W, B) of a deep colour PNG.

    image: loaded, has the upper bytes. twin: the same, not loaded: the lower bytes are read as if
    it had them in the other order; grey with alpha as four bytes.
    """
    codec, extents, offset, raw_mode = twin.tile[0]
    if raw_mode == "LA;16B":  # which Pillow reads as RGBA, too
        twin._mode = "RGBA"
        twin.tile = [(codec, extents, offset, "RGBA")]  # type: ignore[list-item]
        octets = np.asarray(twin).astype(np.uint16)  # (H, W, 4)
        return octets[..., ::2] << 8 | octets[..., 1::2]
    twin.tile = [(codec, extents, offset, f"{image.mode};16L")]  # type: ignore[list-item]
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(twin)
