"""TIFF files that Pillow does not read, or only in part: many bands, deep colours, 64-bit floats.

Strips and tiles are unpacked by the libtiff in Pillow, whatever their compression: a directory that
calls them the rows of an 8-bit grey picture is put behind the file's bytes.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

_TYPES = {
    **{(1, bits): f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(2, bits): f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{(3, bits): f"f{bits // 8}" for bits in (16, 32, 64)},
}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_FILL_ORDER = 266
_LONG = 4
_GREY, _RGB = (0, 1), 2
_JPEG_LIKE = {6, 7, 34887, 34892, 33003, 33005, 34712}
"""Compressions that unpack to pixels, not to bytes."""
MOST_BANDS = 4096


@dataclass(frozen=True)
class Bands:
    """The first picture of a TIFF file, not yet read. dtype: of one sample, in the file's order.

    photometric: 2 is RGB, 1 is grey with zero black, 0 with zero white. alpha: the band that tells
    what is transparent, counted from 0, or None.
    """

    tags: TiffImagePlugin.ImageFileDirectory_v2
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

    @property
    def mode(self) -> str:
        """Its samples in words: 4 × uint16."""
        return f"{self.count} × {self.dtype.name}"

    def is_beyond_pillow(self) -> bool:
        """Whether Pillow refuses it, or reads but 8 bits of a sample, or not all of its bands."""
        deep = self.dtype.itemsize > 1 and self.count > 1
        rare = self.dtype.itemsize == 8 or self.dtype.name in ("float16", "int8")
        planar = self.count == 1 and self.tags.get(_PLANAR, 1) == 2
        # Pillow takes what libtiff has put into the machine's order for the file's.
        packed = self.dtype.itemsize > 1 and self.tags.get(_COMPRESSION, 1) != 1
        rare = rare or (packed and not self.dtype.isnative)
        bands = self.count > 4 or (self.count == 4 and self.alpha is None)
        return deep or rare or planar or bands


def open_bands(file: BinaryIO) -> Bands | None:
    """Read the first directory of a TIFF file; None where it is none, or of pixels in a way that
    Pillow reads or nobody does (palettes, JPEG inside, samples of other sizes).
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(
            start[: 16 if start[2:4].strip(b"\0") == b"+" else 8]
        )
        file.seek(tags.next)
        tags.load(file)
        count = int(tags.get(_SAMPLES, 1))
        bits, kinds = set(_tuple(tags.get(_BITS, 1))), set(_tuple(tags.get(_FORMAT, 1)))
        extra = _tuple(tags.get(_EXTRA, ()))
        photometric = int(tags.get(_PHOTOMETRIC, 1))
        name = _TYPES.get(
            (kinds.pop() if len(kinds) == 1 else 0, bits.pop() if len(bits) == 1 else 0)
        )
        plain = photometric in (*_GREY, _RGB) and tags.get(_COMPRESSION, 1) not in _JPEG_LIKE
        plain = plain and tags.get(_FILL_ORDER, 1) == 1 and 1 <= count <= MOST_BANDS
        if name is None or not plain:
            return None
        dtype = np.dtype(("<" if start[:2] == b"II" else ">") + name)
        alpha = count - len(extra) + extra.index(2) if 2 in extra and len(extra) < count else None
        return Bands(tags, int(tags[_WIDTH]), int(tags[_HEIGHT]), count, dtype, photometric, alpha)
    # What is wrong with a damaged directory is told by Pillow's own reader.
    except Exception:
        return None


def read_bands(file: BinaryIO, found: Bands, wanted: Sequence[int]) -> np.ndarray:
    """Return the wanted bands, counted from 0: (H, W, B) of the samples' type.

    Raises ValueError or OSError where the file is damaged.
    """
    file.seek(0)
    data = file.read()
    if int(found.tags.get(_PLANAR, 1)) == 2:
        planes = [_plane(data, found, band, 1)[..., 0] for band in wanted]
        return np.stack(planes, axis=-1)
    return _plane(data, found, 0, found.count)[..., list(wanted)]


def _plane(data: bytes, found: Bands, plane: int, samples: int) -> np.ndarray:
    """Return one plane of the file, (H, W, samples); a file may have but one."""
    tags, octets = found.tags, samples * found.dtype.itemsize
    tiled = _TILES in tags
    block_w = int(tags[_TILE_WIDTH]) if tiled else found.width
    block_h = (
        int(tags[_TILE_HEIGHT]) if tiled else min(int(tags.get(_ROWS, found.height)), found.height)
    )
    across, down = -(-found.width // block_w), -(-found.height // block_h)
    first, number = plane * across * down, across * down
    places = _tuple(tags[_TILES if tiled else _STRIPS])[first : first + number]
    sizes = _tuple(tags[_TILE_BYTES if tiled else _STRIP_BYTES])[first : first + number]
    if len(places) != number or len(sizes) != number:
        raise ValueError("truncated: strips or tiles are missing")
    if any(place + size > len(data) for place, size in zip(places, sizes, strict=True)):
        raise ValueError("truncated")
    rows = down * block_h if tiled else found.height
    width = across * block_w * octets
    compression = int(tags.get(_COMPRESSION, 1))
    if compression == 1 and not tiled:
        raw = b"".join(data[p : p + s] for p, s in zip(places, sizes, strict=True))
        if len(raw) < rows * width:
            raise ValueError("truncated")
        grid = np.frombuffer(raw, np.uint8, rows * width).reshape(rows, width)
    else:
        block = (block_w * octets, block_h) if tiled else None
        grid = _unpacked(data, (width, rows), block, (places, sizes, block_h, compression))
    blocks = grid.reshape(rows, across, block_w * octets)
    values = _undo(blocks, found.dtype, samples, int(tags.get(_PREDICTOR, 1)))
    return values.reshape(rows, across * block_w, samples)[: found.height, : found.width]


def _unpacked(
    data: bytes,
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    packed: tuple[Sequence[int], Sequence[int], int, int],
) -> np.ndarray:
    """Have libtiff unpack strips or tiles of bytes: (rows, bytes in a row) uint8."""
    places, sizes, rows_per_strip, compression = packed
    entries: dict[int, Sequence[int]] = {
        _WIDTH: size[:1], _HEIGHT: size[1:], _BITS: (8,), _COMPRESSION: (compression,),
        _PHOTOMETRIC: (1,), _SAMPLES: (1,),
    }  # fmt: skip
    if tile is None:
        entries |= {_STRIPS: places, _ROWS: (rows_per_strip,), _STRIP_BYTES: sizes}
    else:
        entries |= {_TILE_WIDTH: tile[:1], _TILE_HEIGHT: tile[1:]}
        entries |= {_TILES: places, _TILE_BYTES: sizes}
    little = data[:2] == b"II"
    magic, order = (b"II*\0", "<") if little else (b"MM\0*", ">")
    end = len(data) + len(data) % 2
    after = end + 2 + 12 * len(entries) + 4
    table, lists = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        written = struct.pack(f"{order}{len(values)}I", *values)
        alone = len(values) == 1
        place = written if alone else struct.pack(f"{order}I", after + len(lists))
        lists += b"" if alone else written
        table += struct.pack(f"{order}HHI", tag, _LONG, len(values)) + place
    head = magic + struct.pack(f"{order}I", end)
    whole = b"".join((head, data[8:], bytes(end - len(data)), table, bytes(4), lists))
    with Image.open(io.BytesIO(whole), formats=("TIFF",)) as image:
        return np.asarray(image)


def _undo(blocks: np.ndarray, dtype: np.dtype, samples: int, predictor: int) -> np.ndarray:
    """Turn bytes (rows, blocks, bytes) into values (rows, blocks, pixels, samples).

    Source: TIFF 6.0, section 14, and Adobe Photoshop TIFF Technical Note 3 (predictor 3).
    """
    rows, across, octets = blocks.shape
    if predictor == 3:
        steps = blocks.reshape(rows, across, -1, samples)
        sums = np.add.accumulate(steps, axis=2, dtype=np.uint8).reshape(rows, across, octets)
        split = sums.reshape(rows, across, dtype.itemsize, -1)
        joined = np.ascontiguousarray(np.moveaxis(split, 2, 3))
        values = joined.view(dtype.newbyteorder(">")).reshape(rows, across, -1, samples)
        return values.astype(dtype.newbyteorder("="))
    values = np.ascontiguousarray(blocks).view(dtype).reshape(rows, across, -1, samples)
    values = values.astype(dtype.newbyteorder("="))
    if predictor == 2:
        kind = np.dtype(f"u{dtype.itemsize}")
        values = np.add.accumulate(values.view(kind), axis=2, dtype=kind).view(values.dtype)
    return values


def _tuple(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
