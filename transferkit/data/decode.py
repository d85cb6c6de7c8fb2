"""Open one picture safely: limits, orientation, colour modes; every failure is a DecodeError."""

import hashlib
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from transferkit.data.formats import readable_formats, what_it_is
from transferkit.data.jpeg_scans import MOST_SCANS, count_scans
from transferkit.data.tar_members import read_member

DEFAULT_MAX_PIXELS = 100_000_000
"""A 12,000 × 8,000 photograph passes (300 MB as RGB); a 30,000 × 30,000 picture does not."""

MOST_BYTES = 2_000_000_000
"""Of a file: 100 million pixels of four 32-bit floats, uncompressed, are 1.6 GB."""

OpenFile = io.BufferedReader | io.BytesIO
"""A file on disk, or the content of one in a shard."""

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROBE_PX = 32
_LARGE_PIXELS = 25_000_000
# Several threads decode at once; large pictures come one after another, to bound memory.
_one_large_picture = threading.Lock()

# Without any handler, logging would print what Pillow logs about damaged files to standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class DecodeError(Exception):
    """A file that cannot be used as a picture; the text is a short reason such as "truncated"."""


@dataclass(frozen=True)
class Probe:
    """What one complete read of a picture tells.

    width, height: pixels, after EXIF orientation.
    digest: 32 hex digits, BLAKE2b of the file's bytes.
    dhash: 64-bit difference hash of the picture; few differing bits mean a similar picture.
    mode, format: as Pillow names them ("RGB", "JPEG"), before any conversion.
    """

    width: int
    height: int
    digest: str
    dhash: int
    mode: str
    format: str


def decode(
    path: Path,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    at_least_px: int | None = None,
) -> Image.Image:
    """Return the picture in a file as RGB, upright, its first frame, on an opaque background.

    background: RGB, 0..255, shown wherever the picture is transparent.
    max_pixels: larger pictures are refused from their header, before they are decoded; Pillow's
        own limit (twice `Image.MAX_IMAGE_PIXELS`) holds as well.
    at_least_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side
        keeps at least so many pixels (about as many times faster); None: at full size.
    Grey of 16 bits maps 0..65535 to 0..255; 32-bit integers and floats: see `_grey_to_8_bit`.
    Raises DecodeError with a short reason for everything that is wrong with the file.
    """
    with _opened(path) as file, _decoded(file, max_pixels, at_least_px) as (image, _):
        return _to_rgb(image, background)


def probe(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Probe:
    """Return size, content digest and similarity hash of a picture; decodes it to its end.

    JPEG is decoded at a reduced scale, which still reads every byte and so finds truncation.
    Raises DecodeError as `decode` does.
    """
    with _opened(path) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        file.seek(0)
        with _decoded(file, max_pixels, _PROBE_PX) as (image, (width, height)):
            dhash = difference_hash(_to_rgb(image, (255, 255, 255)))
            return Probe(width, height, digest, dhash, image.mode, image.format or "")


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits that tell, for an 8 × 8 grid, whether brightness falls from left to right.

    Scaling, recompression and small changes of brightness leave most bits as they are.
    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013 (dHash).
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    rows = np.asarray(grey)  # (8, 9)
    bits = np.packbits(rows[:, :-1] > rows[:, 1:])  # (8,) uint8, one row each
    return int.from_bytes(bits.tobytes(), "big")


@contextmanager
def _opened(path: Path) -> Iterator[OpenFile]:
    """Open a regular file that is not empty; nothing else is opened, as a pipe would hang.

    A path may go on inside of a shard.
    """
    try:
        file = _open_regular(path)
    except FileNotFoundError as error:
        raise DecodeError("broken link" if os.path.islink(path) else "missing") from error
    except PermissionError as error:
        raise DecodeError("permission denied") from error
    except (OSError, ValueError) as error:
        raise DecodeError(f"cannot be opened ({_first_words(error)})") from error
    with file:
        yield file


def _open_regular(path: Path) -> OpenFile:
    try:
        status = os.stat(path)
    except NotADirectoryError:  # a shard is a file, with files inside
        content = read_member(path)
        if not content:
            raise DecodeError("empty file") from None
        return io.BytesIO(content)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not a regular file")
    if status.st_size == 0:
        raise DecodeError("empty file")
    if status.st_size > MOST_BYTES:
        raise DecodeError(f"{status.st_size:,} bytes, more than the limit of {MOST_BYTES:,}")
    return open(path, "rb")


@contextmanager
def _decoded(
    file: OpenFile, max_pixels: int, at_least_px: int | None
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """Yield the upright picture in its own mode, and its (width, height) before any reduction."""
    try:
        with _pillow_warnings_ignored, Image.open(file, formats=readable_formats()) as image:
            _check_size(image.size, max_pixels)
            if image.format in ("JPEG", "MPO"):
                _check_scans(file)
            if image.width * image.height > _LARGE_PIXELS:
                with _one_large_picture:
                    yield _load_upright(image, at_least_px)
            else:
                yield _load_upright(image, at_least_px)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("more memory needed than there is") from error
    # Pillow's decoders raise nearly every built-in exception on damaged files.
    except Exception as error:
        raise DecodeError(_reason(error, file, max_pixels)) from error


def _load_upright(
    image: Image.Image, at_least_px: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode the first frame and undo its EXIF orientation; also return its size unreduced."""
    header_size = image.size
    reduced = at_least_px is not None and image.draft(None, (at_least_px, at_least_px)) is not None
    image.load()
    # Some formats (TIFF, ICO) know their true size only after loading, so it is asked again.
    width, height = header_size if reduced else image.size
    orientation = _orientation(image)
    if orientation >= 5:
        width, height = height, width
    if orientation in _TRANSPOSE:
        upright = image.transpose(_TRANSPOSE[orientation])
        upright.format = image.format
        return upright, (width, height)
    return image, (width, height)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    # A damaged EXIF block raises nearly anything, and says nothing about the pixels.
    except Exception:
        return 1
    return value if value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert any of Pillow's modes to RGB, laying transparent pixels over `background`."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _grey_to_8_bit(image)
    if image.has_transparency_data:
        # "La" converts to "LA" only, so to "RGBA" in two steps.
        layered = image.convert("LA") if image.mode == "La" else image
        opaque = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(opaque, layered.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Map deep grey to 0..255 by its full scale, or, where that is not known, by its own range.

    16 bits (also when Pillow holds them as 32: PNG and PNM): 0..65535 to 0..255.
    Floats within 0..1: by 255. Integers and floats within 0..255: as they are. Integers within
    0..65535: as 16 bits. Everything else: the picture's own finite minimum to 0, maximum to 255.
    """
    values = np.asarray(image)  # (H, W), of the mode's own type
    low, high = _deep_range(image, values)
    shades = np.empty(values.shape, dtype=np.uint8)
    for rows in _strips(values):
        with np.errstate(invalid="ignore"):  # a signalling NaN
            part = values[rows].astype(np.float64)
        part = np.nan_to_num(part, nan=low, posinf=high, neginf=low)
        shades[rows] = np.rint(((part - low) / (high - low or 1.0)).clip(0, 1) * 255)
    return Image.fromarray(shades)


def _deep_range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Return what becomes 0 and what becomes 255; see `_grey_to_8_bit`."""
    if image.mode != "F" and (image.mode.startswith("I;16") or image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    for rows in _strips(values):
        finite = values[rows][np.isfinite(values[rows])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    low, high = (low, high) if low <= high else (0.0, 0.0)
    if low >= 0 and high <= 65535:
        scales = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
        high = next((scale for scale in scales if high <= scale), high)
        low = 0.0 if high in scales else low
    return low, high


def _strips(values: np.ndarray) -> Iterator[slice]:
    """Yield rows of about a million pixels, so that a large picture needs little memory beside."""
    rows = max(1, 2**20 // values.shape[1])
    for first in range(0, len(values), rows):
        yield slice(first, first + rows)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if pixels < 1:
        raise DecodeError("no pixels")
    if pixels > max_pixels:
        raise DecodeError(_too_many(pixels, max_pixels))


def _check_scans(file: OpenFile) -> None:
    if count_scans(file) > MOST_SCANS:
        raise DecodeError(f"more than {MOST_SCANS} scans: it would take very long to decode")


def _too_many(pixels: int, max_pixels: int) -> str:
    return f"{pixels:,} pixels, more than the limit of {max_pixels:,}"


def _reason(error: Exception, file: OpenFile, max_pixels: int) -> str:
    """Put whatever Pillow raised into a few words."""
    words = _first_words(error)
    if isinstance(error, Image.DecompressionBombError):
        # Pillow's own limit came first; its message starts "Image size (900000000 pixels) ...".
        pixels = re.search(r"\((\d+) pixels\)", words)
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        return _too_many(int(pixels[1]), limit) if pixels else "too many pixels"
    if isinstance(error, UnidentifiedImageError):
        return what_it_is(file)
    if isinstance(error, EOFError) or re.search(r"truncat|not enough image data", words, re.I):
        return "truncated"
    return f"damaged: {words}"


def _first_words(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:80] or type(error).__name__


class _IgnoredWarnings:
    """Silences what Pillow warns about damaged files while at least one thread decodes.

    `warnings.catch_warnings` saves and restores one list for the whole process, so threads that
    overlap would restore each other's: only the first one in saves, only the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_pillow_warnings_ignored = _IgnoredWarnings()
