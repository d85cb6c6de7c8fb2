"""Which formats are read, and what a file is, told from its name or from its first bytes."""

import contextlib
import os
import re
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from transferkit.files.foreign_files import require_regular

# EPS would start Ghostscript on the user's files; the others are only recognised, never decoded.
REFUSED_FORMATS = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}

_RAW_SUFFIXES = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf"),
    *(".rw2", ".rwl", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".kdc", ".dcr", ".mrw", ".erf"),
)
_UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIC"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys(_RAW_SUFFIXES, "camera raw"),
    **dict.fromkeys((".wmf", ".emf"), "WMF"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    ".eps": "EPS",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".jxl": "JPEG XL",
    ".svg": "SVG",
}
"""Suffix to name of the pictures that Pillow may not decode here; `image_suffixes` comes first."""

_REMEDIES = {
    "HEIC": "pip install 'transferkit[heic]' to read it",
    "AVIF": "pip install 'pillow>=11.3' to read it",
}
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0"),
    *(b"MM\0+", b"\0\0\0\x0cjP  \r\n", b"\xff\x4f\xff\x51", b"8BPS\0\x01"),
)
"""How pictures begin that are found without a suffix."""
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
# A place in the file, what stands there, what the file is then.
_STRANGERS = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the picture (git lfs pull fetches it)"),
    (0, b"/annex/objects/", "a git-annex pointer, not the picture (git annex get fetches it)"),
    (0, b"%!PS", "EPS (not supported)"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS (not supported)"),
    (0, b"%PDF", "a PDF document, not an image"),
    (0, b"PK\x03\x04", "a ZIP archive, not an image"),
    (0, b"\x1f\x8b", "a gzip archive, not an image"),
    (0, b"Rar!", "a RAR archive, not an image"),
    (0, b"7z\xbc\xaf", "a 7z archive, not an image"),
    (0, b"\x93NUMPY", "a NumPy array, not an image"),
    (0, b"\x89HDF", "HDF5 (not supported)"),
    (0, b"\xff\x0a", "JPEG XL (not supported)"),
    (4, b"JXL \r\n", "JPEG XL (not supported)"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR (not supported)"),
    (0, b"#?RADIANCE", "Radiance HDR (not supported)"),
    (0, b"FUJIFILM", "camera raw (not supported)"),
    (4, b"ftypcrx", "camera raw (not supported)"),
    (4, b"ftyp", "a video, not an image"),
    (0, b"\x1aE\xdf\xa3", "a video, not an image"),
    (128, b"DICM", "DICOM (not supported)"),
)
_MARKUP = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:\?xml[^>]*>\s*<)?(!doctype html|\w+)", re.I | re.S)


@cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that may be opened: all but `REFUSED_FORMATS`."""
    Image.init()
    with contextlib.suppress(ImportError):  # the extra "heic"
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in REFUSED_FORMATS)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes, with their dot, of the formats that Pillow decodes here."""
    formats = readable_formats()
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in suffixes if name in formats)


def picture_kind(name: str) -> str | None:
    """Return "" for a readable suffix, the kind of an unsupported picture, None for other files."""
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix in image_suffixes() else _UNSUPPORTED.get(suffix)


def unsupported(kind: str) -> str:
    """Return why a picture of an unsupported kind is not read, and what helps if anything does."""
    return f"{kind} ({_REMEDIES.get(kind, 'not supported')})"


def begins_as_picture(file: Path) -> bool:
    """Whether a file's first bytes are those of a picture, whatever its name."""
    try:
        require_regular(file)  # opening a pipe would wait for whoever writes into it
        with open(file, "rb") as opened:
            start = opened.read(32)
    except (OSError, ValueError):
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    bitmap = start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(_SIGNATURES) or webp or bitmap or bool(_coded_still(start))


def what_it_is(file: BinaryIO) -> str:
    """Say what a file is that no plug-in of Pillow reads, from its first bytes."""
    file.seek(0)
    start = file.read(4096)
    if kind := _coded_still(start):
        readable = {"HEIC": "HEIF"}.get(kind, kind) in readable_formats()
        return "damaged header" if readable else unsupported(kind)
    if start.startswith((*_SIGNATURES, b"\x89PNG", b"GIF8", b"RIFF")):
        return _damaged(start)
    for place, words, kind in _STRANGERS:
        if start.startswith(words, place):
            return kind
    if not any(start):
        return "nothing but zero bytes"
    return _text(start) or "not an image"


def _coded_still(start: bytes) -> str:
    """Return HEIC or AVIF for the box that such files begin with, else ""."""
    if start[4:8] != b"ftyp":
        return ""
    brands = {start[at : at + 4] for at in (8, *range(16, min(start[3], len(start)), 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIC_BRANDS else ""


def _damaged(start: bytes) -> str:
    """Say what keeps the plug-in of a known format from reading a header, as far as it tells."""
    if start.startswith(b"\xff\xd8"):
        frame = re.search(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf])..(.)", start, re.S)
        if frame and frame[1][0] in (0xC3, 0xC7, 0xCB, 0xCF):
            return "lossless JPEG (not supported)"
        if frame and frame[2][0] in (12, 16):
            return f"JPEG of {frame[2][0]} bits (not supported)"
    return "damaged header"


def _text(start: bytes) -> str:
    """Say what text a file holds, "" where it holds none."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    if markup := _MARKUP.match(start):
        name = markup[1].decode().lower()
        if name in ("html", "!doctype html", "head", "body", "title"):
            return "an HTML page, not an image (a download that failed?)"
        return "SVG (not supported)" if name == "svg" else f"XML text, not an image: <{name}>"
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return ""
        text = start[: error.start].decode()
    line = " ".join(text[:200].split())
    return f"text, not an image: {line[:40]}" if line.isprintable() else ""
