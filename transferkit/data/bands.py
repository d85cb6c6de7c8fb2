"""TIFF files that Pillow does not read, or only in part: many bands, deep colours, 64-bit floats.

The libtiff in Pillow decompresses the strips or tiles: a second directory, put behind the file's
bytes, calls them the rows of an 8-bit grey picture.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as tiff

MOST_BANDS = 4096
_KINDS = {1: "u", 2: "i", 3: "f"}
"""Sample format to the kind of its numbers."""
_GREY_OR_RGB = (0, 1, 2)
_JPEG_LIKE = {6, 7, 34887, 34892, 33003, 33005, 34712}
"""Compressions that unpack to pixels, not to bytes."""
_LONG = 4
_BITS, _SAMPLES = tiff.BITSPERSAMPLE, tiff.SAMPLESPERPIXEL
_PHOTOMETRIC = tiff.PHOTOMETRIC_INTERPRETATION


@dataclass(frozen=True)
class Bands:
    """The first picture of a TIFF file, not yet read. dtype: of one sample, in the file's order.

    photometric: 2 is RGB, 1 is grey with zero black, 0 with zero white. alpha: index of the band of
    opacity, or None.
    """

    tags: tiff.ImageFileDirectory_v2
    width: int
    height: int
    count: int
    dtype: np.dtype
    photometric: int
    alpha: int | None

    @property
    def bytes(self) -> int:
        """Size of its samples, unpacked."""
        return self.width * self.height * self.count * self.dtype.itemsize

    def is_beyond_pillow(self) -> bool:
        """Whether Pillow refuses it, or reads but 8 bits of a sample, or not all of its bands."""
        size, several = self.dtype.itemsize, self.count > 1
        planar = not several and self.tags.get(tiff.PLANAR_CONFIGURATION, 1) == 2
        # Pillow takes what libtiff has put into the machine's byte order for the file's.
        packed = size > 1 and self.tags.get(tiff.COMPRESSION, 1) != 1
        rare = size == 8 or self.dtype.name in ("float16", "int8")
        many = self.count > 4 or (self.count == 4 and self.alpha is None)
        swapped = packed and not self.dtype.isnative
        return (size > 1 and several) or rare or planar or swapped or many


def open_bands(file: BinaryIO) -> Bands | None:
    """Read the first directory of a TIFF file; None where it is none, or of pixels in a way that
    Pillow reads or nobody does (palettes, JPEG inside, samples of other sizes).
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        tags = tiff.ImageFileDirectory_v2(start[: 16 if b"+" in start[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        (kind,), (bits,) = (set(_tuple(tags.get(t, 1))) for t in (tiff.SAMPLEFORMAT, _BITS))
        dtype = np.dtype(f"{'<' if start[:2] == b'II' else '>'}{_KINDS[kind]}{bits // 8}")
        count, photometric = int(tags.get(_SAMPLES, 1)), int(tags.get(_PHOTOMETRIC, 1))
        plain = photometric in _GREY_OR_RGB and tags.get(tiff.COMPRESSION, 1) not in _JPEG_LIKE
        plain = plain and tags.get(tiff.FILLORDER, 1) == 1 and bits in (8, 16, 32, 64)
        if not (plain and 1 <= count <= MOST_BANDS):
            return None
        extra = _tuple(tags.get(tiff.EXTRASAMPLES, ()))
        alpha = count - len(extra) + extra.index(2) if 2 in extra and len(extra) < count else None
        size = int(tags[tiff.IMAGEWIDTH]), int(tags[tiff.IMAGELENGTH])
        return Bands(tags, *size, count, dtype, photometric, alpha)
    # Pillow's own reader says what is wrong with a damaged directory.
    except Exception:
        return None


def read_bands(file: BinaryIO, bands: Bands, wanted: Sequence[int]) -> np.ndarray:
    """Return the wanted bands, by index: (H, W, B) of the samples' type.

    Raises ValueError or OSError where the file is damaged.
    """
    file.seek(0)
    data = file.read()
    if int(bands.tags.get(tiff.PLANAR_CONFIGURATION, 1)) == 2:
        return np.concatenate([_plane(data, bands, band, 1) for band in wanted], axis=-1)
    return _plane(data, bands, 0, bands.count)[..., list(wanted)]


def _plane(data: bytes, bands: Bands, plane: int, samples: int) -> np.ndarray:
    """Return one plane, (H, W, samples); a file of interleaved bands has but one."""
    tags, octets = bands.tags, samples * bands.dtype.itemsize
    tiled = tiff.TILEOFFSETS in tags
    if tiled:
        width, height = int(tags[tiff.TILEWIDTH]), int(tags[tiff.TILELENGTH])
        listed = (tiff.TILEOFFSETS, tiff.TILEBYTECOUNTS)
        block = {tiff.TILEWIDTH: (width * octets,), tiff.TILELENGTH: (height,)}
    else:
        height = min(int(tags.get(tiff.ROWSPERSTRIP, bands.height)), bands.height)
        width, listed = bands.width, (tiff.STRIPOFFSETS, tiff.STRIPBYTECOUNTS)
        block = {tiff.ROWSPERSTRIP: (height,)}
    across, down = -(-bands.width // width), -(-bands.height // height)
    number = across * down
    offsets, sizes = (_tuple(tags[tag])[plane * number :][:number] for tag in listed)
    if len(offsets) != number or len(sizes) != number:
        raise ValueError("truncated: strips or tiles are missing")
    if any(offset + size > len(data) for offset, size in zip(offsets, sizes, strict=True)):
        raise ValueError("truncated")
    rows, octets = down * height if tiled else bands.height, width * octets
    compression = int(tags.get(tiff.COMPRESSION, 1))
    if compression == 1 and not tiled:
        raw = b"".join(data[o : o + n] for o, n in zip(offsets, sizes, strict=True))
        if len(raw) < rows * octets:
            raise ValueError("truncated")
        grid = np.frombuffer(raw, np.uint8, rows * octets)
    else:
        size = {tiff.IMAGEWIDTH: (across * octets,), tiff.IMAGELENGTH: (rows,)}
        kind = {_BITS: (8,), tiff.COMPRESSION: (compression,), _PHOTOMETRIC: (1,), _SAMPLES: (1,)}
        blocks = dict(zip(listed, (offsets, sizes), strict=True))
        grid = _unpacked(data, {**size, **kind, **block, **blocks})
    values = _undo(grid.reshape(rows, across, octets), bands.dtype, samples, tags)
    return values.reshape(rows, across * width, samples)[: bands.height, : bands.width]


def _unpacked(data: bytes, entries: dict[int, Sequence[int]]) -> np.ndarray:
    """Have libtiff decompress what a directory of these entries describes: (H, W) uint8."""
    magic, order = (b"II*\0", "<") if data[:2] == b"II" else (b"MM\0*", ">")
    end = len(data) + len(data) % 2
    after = end + 2 + 12 * len(entries) + 4
    table, lists = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        table += struct.pack(f"{order}HHI", tag, _LONG, len(values))
        table += packed if len(values) == 1 else struct.pack(f"{order}I", after + len(lists))
        lists += packed if len(values) > 1 else b""
    head = magic + struct.pack(f"{order}I", end)
    whole = b"".join((head, data[8:], bytes(end - len(data)), table, bytes(4), lists))
    with Image.open(io.BytesIO(whole), formats=("TIFF",)) as image:
        return np.asarray(image)


def _undo(
    blocks: np.ndarray, dtype: np.dtype, samples: int, tags: tiff.ImageFileDirectory_v2
) -> np.ndarray:
    """Undo the predictor: bytes (rows, blocks, bytes) to values (rows, blocks, pixels, samples).

    Source: TIFF 6.0, section 14, and Adobe Photoshop TIFF Technical Note 3 (predictor 3).
    """
    shape, predictor = (*blocks.shape[:2], -1, samples), int(tags.get(tiff.PREDICTOR, 1))
    if predictor == 3:
        sums = np.add.accumulate(blocks.reshape(shape), axis=2, dtype=np.uint8)
        split = sums.reshape(*blocks.shape[:2], dtype.itemsize, -1)
        blocks, dtype = np.moveaxis(split, 2, 3), dtype.newbyteorder(">")
    values = np.ascontiguousarray(blocks).view(dtype).reshape(shape)
    values = values.astype(dtype.newbyteorder("="))
    if predictor == 2:
        kind = np.dtype(f"u{dtype.itemsize}")
        values = np.add.accumulate(values.view(kind), axis=2, dtype=kind).view(values.dtype)
    return values


def _tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
