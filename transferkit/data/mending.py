"""Complete pictures that Pillow refuses, as copies that it reads."""

import hashlib
import io
import zlib
from typing import BinaryIO

from PIL import Image

from transferkit.data.jpeg_scans import all_scans_there

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_END = b"\xff\xd9"
# Some noise may decode as what a decoder puts in the place of what is missing; hardly all of these.
_NOISES = [
    *(hashlib.shake_128(bytes([n])).digest(4096).replace(b"\xff", b"") for n in range(6)),
    *(bytes([n]) * 512 for n in (0x55, 0xAA, 0x7F, 0xFE, 0x33, 0xCC, 0x92, 0x6D, 0x0F)),
]
_COMPARED_WHOLE = 25_000_000
"""Pixels; larger pictures are compared at a reduced scale."""


def mended(file: BinaryIO, truncated: bool) -> io.BytesIO | None:
    """Return a copy that Pillow reads of a picture whose pixels are all there, or None.

    A PNG without its text, profile and other chunks that are not pixels (Pillow refuses large and
    damaged ones); a JPEG that lacks nothing but its end marker.
    """
    file.seek(0)
    start = file.read(8)
    if start == _PNG:
        return _pixels_of_png(file)
    if start[:2] != b"\xff\xd8" or not truncated:
        return None
    file.seek(0)
    return _ended(file.read())


def _pixels_of_png(file: BinaryIO) -> io.BytesIO | None:
    """Copy the chunks that hold pixels, and the orientation; None where there are no others."""
    kept, dropped, kind = io.BytesIO(), False, b""
    kept.write(_PNG)
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in _PIXELS and kind != b"eXIf":
            dropped = True
            file.seek(length + 4, io.SEEK_CUR)
            continue
        body = file.read(length + 4)
        if kind == b"eXIf" and zlib.crc32(kind + body[:-4]).to_bytes(4, "big") != body[-4:]:
            dropped = True
        else:
            kept.write(head + body)
    kept.seek(0)
    return kept if dropped else None


def _ended(data: bytes) -> io.BytesIO | None:
    """Append its end marker to a JPEG; None where pixels are missing, too.

    A decoder makes pixels of whatever stands where missing ones should be, and passes over what
    stands behind the last one: with noise behind it the picture is the same only if it is whole.
    """
    data = data.rstrip(b"\xff")
    if not all_scans_there(data):
        return None
    # Where intervals are marked, what follows is read only behind the right one of eight marks.
    marks = [bytes((0xFF, 0xD0 + n)) for n in range(8)] if b"\xff\xdd" in data else []
    plain = _decoded(data + _END)
    tails = [*_NOISES, *(mark + _NOISES[0] for mark in marks)]
    whole = all(_decoded(data + tail + _END) == plain for tail in tails)
    return io.BytesIO(data + _END) if whole else None


def _decoded(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        if image.width * image.height > _COMPARED_WHOLE:
            image.draft(None, (1, 1))
        return image.tobytes()
