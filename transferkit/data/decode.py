"""Open one picture safely: limits, orientation, colour modes; every failure is a DecodeError."""

import hashlib
import logging
import re
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from transferkit.data import depth
from transferkit.data.bands import Bands, open_bands, read_bands
from transferkit.data.formats import readable_formats, what_it_is
from transferkit.data.jpeg_scans import MOST_SCANS, count_scans
from transferkit.data.mending import mended
from transferkit.data.opened import DecodeError as DecodeError
from transferkit.data.opened import OpenFile, first_words, opened, pillow_unlimited
from transferkit.data.reading import DEFAULT_MAX_PIXELS, MOST_MEMORY, PLAIN, Reading

NO_MEMORY = "more memory needed than there is"

_ORIENTATION = 0x0112
"""EXIF and TIFF tag."""
_TRANSPOSE = {
    **{2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM},
    **{5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270},
    **{7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90},
}
_FROM_THE_END = (
    *(Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
    *(Transpose.ROTATE_270, Transpose.TRANSVERSE),
)
"""Turned so, the first row becomes the last row or column."""
_SIDEWAYS = (Transpose.ROTATE_90, Transpose.ROTATE_270, Transpose.TRANSPOSE, Transpose.TRANSVERSE)
_PROBE_PX = 32
_LARGE_PIXELS = 25_000_000
_STRIP_PIXELS = 2**20
_WHILE_DECODING = {
    **{"WEBP": 14, "JPEG2000": 14, "AVIF": 10, "HEIF": 10, "ICNS": 8, "GIF": 4, "TIFF": 4},
    **dict.fromkeys(("QOI", "PPM", "SGI", "TGA", "SPIDER", "FITS", "DDS", "PSD"), 4),
}
"""Bytes for each pixel that a plug-in needs beside the picture; estimated for WebP, JPEG 2000, AVIF
and HEIF, measured for the others.
"""
# Several threads decode at once; large pictures come one after another, to bound memory.
_one_large_picture = threading.Lock()

# Without any handler, logging would print what Pillow logs about damaged files to standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Probe:
    """What one complete read of a picture tells.

    width, height: pixels, after EXIF orientation.
    mode, format: as Pillow names them ("RGB", "JPEG"), before any conversion.
    range: smallest and largest value of a picture of more than 8 bits, see `measured_range`.
    digest: 32 hex digits, BLAKE2b of the file's bytes.
    dhash: 64-bit difference hash of the picture; few differing bits mean a similar picture.
    """

    width: int
    height: int
    mode: str
    format: str
    range: depth.Range | None = None
    digest: str = ""
    dhash: int = 0


def decode(path: Path, reading: Reading = PLAIN, at_least_px: int | None = None) -> Image.Image:
    """Return the picture in a file as RGB, upright, its first frame, on an opaque background.

    reading: see `Reading`; too many pixels are refused from the header, before they are decoded.
    at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side
        keeps at least so many pixels (about as many times faster), and so may, by a whole number,
        a large picture that must be converted; None: at full size.
    Raises DecodeError with a short reason for everything that is wrong with the file.
    """
    with opened(path) as file:
        return _read(file, reading, at_least_px)[0]


def probe(path: Path, reading: Reading = PLAIN) -> Probe:
    """Return size, content digest and similarity hash of a picture; decodes it to its end.

    JPEG is decoded at a reduced scale, which still reads every byte and so finds truncation.
    Raises DecodeError as `decode` does.
    """
    with opened(path) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        image, facts = _read(file, reading, _PROBE_PX, measured=True)
        return replace(facts, digest=digest, dhash=difference_hash(image))


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits that tell, for an 8 × 8 grid, whether brightness falls from left to right.

    Scaling, recompression and small changes of brightness leave most bits as they are.
    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013 (dHash).
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    rows = np.asarray(grey)  # (8, 9)
    bits = np.packbits(rows[:, :-1] > rows[:, 1:])  # (8,) uint8, one row each
    return int.from_bytes(bits.tobytes(), "big")


def _read(
    file: OpenFile, reading: Reading, at_least_px: int | None, measured: bool = False
) -> tuple[Image.Image, Probe]:
    """Return a picture as RGB, upright. measured: and the range of its values, if it is deep."""
    options = (reading, at_least_px, measured)
    try:
        with pillow_unlimited:
            bands = open_bands(file)
            chosen = bands is not None and bands.count > 3 and reading.bands
            if bands is not None and (bands.is_beyond_pillow() or chosen):
                return _read_bands(file, bands, *options)
            try:
                return _read_whole(file, *options)
            except (DecodeError, MemoryError):
                raise
            except Exception as error:
                if bands is not None and isinstance(error, UnidentifiedImageError):
                    return _read_bands(file, bands, *options)
                sound = mended(file, _is_truncated(error))
                if sound is None:
                    raise
                return _read_whole(sound, *options)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(NO_MEMORY) from error
    # Pillow's decoders raise nearly every built-in exception on damaged files.
    except Exception as error:
        raise DecodeError(_reason(error, file)) from error


def _read_whole(
    file: OpenFile, reading: Reading, at_least_px: int | None, measured: bool
) -> tuple[Image.Image, Probe]:
    """Read what Pillow reads."""
    file.seek(0)
    with Image.open(file, formats=readable_formats()) as image:
        _check_size(image.size, reading.max_pixels)
        header, drafted = image.size, None
        several = image.format in ("JPEG", "MPO") and _check_scans(file) > 1
        if at_least_px is not None:
            drafted = image.draft(None, (at_least_px, at_least_px))
        factor = _factor(image.size, at_least_px)
        _check_memory(image, header if several else None, factor, reading)
        with _one_large_picture if prod(image.size) > _LARGE_PIXELS else nullcontext():
            deep_colour = depth.is_deep_colour(image)
            image.load()
            # Some formats (TIFF, ICO) know their true size only after loading: asked again.
            size = image.size if drafted is None else header
            orientation = _orientation(image)
            values = _deep_values(image, file, reading, measured) if deep_colour else None
            if values is None and depth.is_deep_grey(image):
                values = depth.all_values(image)
            value_range = None
            if measured and values is not None:
                colours = values[..., :-1] if _has_alpha(values) else values
                value_range = depth.measured_range(colours)
            elif measured and deep_colour:  # bright ones count as well, by their upper bytes
                upper = np.asarray(image)[..., :3].astype(np.uint16)
                value_range = depth.measured_range(upper * 257)
            how = (reading.background, factor, _TRANSPOSE.get(orientation))
            if values is not None:
                full = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
                full = full and image.mode != "F"
                scale = reading.depth_range or depth.own_range(values, full_16=full)
                rgb = _in_strips(image, values, scale, *how)
            else:
                if how[2] is not None and image.mode == "RGB":
                    _require_memory(image.size, prod(image.size) * (4 + 4 / factor**2), reading)
                rgb = _to_rgb(image, *how)
            size = size[::-1] if orientation in (5, 6, 7, 8) else size
            return rgb, Probe(*size, image.mode, image.format or "", value_range)


def _deep_values(
    image: Image.Image, file: OpenFile, reading: Reading, measured: bool
) -> np.ndarray | None:
    """Return all 16 bits of a PNG in colours, (H, W, B); None where the upper ones will do."""
    if measured:
        if np.asarray(image)[..., :3].max() >= 128:
            return None
    elif reading.depth_range in (None, depth.FULL):
        return None
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as twin:
        return depth.all_16_bits(image, twin)


def _read_bands(
    file: OpenFile, bands: Bands, reading: Reading, at_least_px: int | None, measured: bool
) -> tuple[Image.Image, Probe]:
    """Read bands of a TIFF file that Pillow does not, or only 8 bits of them."""
    size = (bands.width, bands.height)
    _check_size(size, reading.max_pixels)
    _require_memory(size, 2 * bands.bytes + 4 * prod(size), reading)
    chosen = _chosen(bands, reading.bands)
    alpha = [bands.alpha] if bands.alpha is not None and not reading.bands else []
    with _one_large_picture:
        values = read_bands(file, bands, [*chosen, *alpha])
    colours, full = values[..., : len(chosen)], bands.dtype.name == "uint16"
    deep = measured and bands.dtype.itemsize > 1
    value_range = depth.measured_range(colours) if deep else None
    scale = (0.0, 255.0) if bands.dtype == np.uint8 else reading.depth_range
    shades = depth.to_8_bit(colours, scale or depth.own_range(colours, full_16=full))
    if bands.photometric == 0 and len(chosen) == 1:  # zero is white
        shades = 255 - shades
    layers = [Image.fromarray(np.ascontiguousarray(layer)) for layer in np.moveaxis(shades, -1, 0)]
    image = Image.merge("RGB", layers * 3 if len(layers) == 1 else layers)
    if alpha:
        opacity = values[..., -1]
        opacity = depth.to_8_bit(opacity, depth.own_range(opacity, full_16=full))
        image.putalpha(Image.fromarray(opacity))
    orientation = int(bands.tags.get(_ORIENTATION, 1))
    turn = _TRANSPOSE.get(orientation)
    rgb = _to_rgb(image, reading.background, _factor(size, at_least_px), turn)
    size = size[::-1] if orientation in (5, 6, 7, 8) else size
    return rgb, Probe(*size, f"{bands.count} × {bands.dtype.name}", "TIFF", value_range)


def _chosen(bands: Bands, wanted: tuple[int, ...]) -> list[int]:
    """Return the indices of the bands that become red, green and blue, or grey."""
    if wanted and bands.count > 3:
        if max(wanted) > bands.count:
            raise DecodeError(f"it has {bands.count} bands, no band {max(wanted)}")
        return [band - 1 for band in wanted]
    colours = bands.count - (bands.alpha is not None)
    if colours <= 2:
        return [0]
    if colours > 3 and bands.photometric != 2:
        raise DecodeError(
            f"{bands.count} bands: name the three to see (finetune and inspect: --bands 3,2,1)"
        )
    return [0, 1, 2]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    # A damaged EXIF block raises nearly anything, and says nothing about the pixels.
    except Exception:
        return 1
    return value if value in _TRANSPOSE else 1


def _factor(size: tuple[int, int], at_least_px: int | None) -> int:
    """Return by how much a large picture may shrink while it is converted."""
    if at_least_px is None or prod(size) <= _LARGE_PIXELS:
        return 1
    return max(1, min(size) // at_least_px)


def _to_rgb(
    image: Image.Image, background: tuple[int, int, int], factor: int, turn: Transpose | None
) -> Image.Image:
    """Convert any of Pillow's 8-bit modes to RGB, upright; transparent parts lie over `background`.

    factor: shrinks what must be copied anyway: in another mode than RGB, or to be turned.
    """
    if image.mode == "RGB" and not image.has_transparency_data and turn is None:
        return image
    if prod(image.size) <= _LARGE_PIXELS:
        rgb = _opaque(image, background)
        return rgb if turn is None else rgb.transpose(turn)
    return _in_strips(image, None, (0.0, 1.0), background, factor, turn)


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.has_transparency_data:
        # "La" converts to "LA" only, so to "RGBA" in two steps.
        layered = image.convert("LA") if image.mode == "La" else image
        opaque = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(opaque, layered.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(
    image: Image.Image,
    values: np.ndarray | None,
    scale: depth.Range,
    background: tuple[int, int, int],
    factor: int,
    turn: Transpose | None,
) -> Image.Image:
    """Convert a picture, or its deep values, row by row, shrunk by a whole factor and turned."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width // factor) * factor
    columns, lines = -(-width // factor), -(-height // factor)
    sideways = turn in _SIDEWAYS
    rgb = Image.new("RGB", (lines, columns) if sideways else (columns, lines))
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        if values is None:
            part = image.crop(box)
        else:
            shades = depth.to_8_bit(values[top : box[3]], scale)
            if _has_alpha(values):
                shades[..., -1] = values[top : box[3], :, -1] >> 8
            part = Image.fromarray(shades)
        part = _opaque(part, background)
        part = part.reduce(factor) if factor > 1 else part
        at = lines - top // factor - part.height if turn in _FROM_THE_END else top // factor
        part = part if turn is None else part.transpose(turn)
        rgb.paste(part, (at, 0) if sideways else (0, at))
    return rgb


def _has_alpha(values: np.ndarray) -> bool:
    """Whether the last band of a deep PNG's (H, W, B) values is what is transparent."""
    return values.ndim == 3 and values.shape[2] in (2, 4)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    pixels = prod(size)
    if pixels < 1:
        raise DecodeError("no pixels")
    if pixels > max_pixels:
        raise DecodeError(
            f"{pixels:,} pixels, more than the limit of {max_pixels:,} (see --max-pixels)"
        )


def _check_scans(file: OpenFile) -> int:
    """Return the number of scans of a JPEG; raise where there are too many."""
    scans = count_scans(file)
    if scans > MOST_SCANS:
        raise DecodeError(f"more than {MOST_SCANS} scans: it would take very long to decode")
    return scans


def _check_memory(
    image: Image.Image, several: tuple[int, int] | None, factor: int, reading: Reading
) -> None:
    """Raise where decoding a picture and converting it would take too much memory.

    several: the size of a JPEG of several scans, which are all kept, at 2 bytes for each value.
    """
    mode = image.mode
    stored = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    # The values of deep pictures are copied; 16 bits of a colour are read in two halves.
    stored += 14 if depth.is_deep_colour(image) else stored if depth.is_deep_grey(image) else 0
    copied = 0 if mode == "RGB" and factor == 1 else 4 / factor**2
    needed = prod(image.size) * (stored + copied + _WHILE_DECODING.get(image.format or "", 0))
    if several is not None:
        layers = [(h * v) for _, h, v, _ in getattr(image, "layer", ())] or [1]
        needed += 2 * prod(several) * sum(layers) / max(layers)
    _require_memory(several or image.size, needed, reading)


def _require_memory(size: tuple[int, int], needed: float, reading: Reading) -> None:
    if needed > reading.most_bytes:
        enough = DEFAULT_MAX_PIXELS + ceil((needed - MOST_MEMORY) / 8)
        raise DecodeError(
            f"{prod(size):,} pixels take {needed / 1e6:,.0f} MB to decode, more than the limit of "
            f"{reading.most_bytes / 1e6:,.0f} MB (--max-pixels {max(enough, prod(size))} allows it)"
        )


def _is_truncated(error: Exception) -> bool:
    words = re.compile("truncat|not enough image data|unexpected end", re.I)
    return isinstance(error, EOFError) or words.search(first_words(error)) is not None


def _reason(error: Exception, file: OpenFile) -> str:
    """Put whatever Pillow raised into a few words."""
    if isinstance(error, UnidentifiedImageError):
        return what_it_is(file)
    return "truncated" if _is_truncated(error) else f"damaged: {first_words(error)}"
