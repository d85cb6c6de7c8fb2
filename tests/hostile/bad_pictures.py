"""Bad pictures, made from a seed: bytes of files and names of files."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS")
SUFFIXES = (
    ".jpg",
    ".png",
    ".webp",
    ".tif",
    ".gif",
    ".bmp",
    ".ppm",
    ".tga",
    ".ico",
    ".jp2",
    ".icns",
)
MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "HSV", "I", "I;16", "F")
SIZES = ((1, 1), (1, 2), (2, 1), (7, 5), (33, 65), (64, 64), (1, 20_000), (20_000, 1), (255, 256))
ODD_NAMES = (
    "a\nb",
    "\ttab",
    "-rf",
    "--help",
    "🦆",
    "e\u0301",
    "\u202egnp",
    "'quote'",
    '"',
    "$(id)",
    "`id`",
    "a;b",
    "%s",
    "<script>alert(1)<!--",
    "=1+1",
    "@x",
    "con",
    " space ",
    "*",
    "[x]",
    "\x7f",
    "\x1b[2J",
)


def picture(rng: random.Random) -> bytes:
    """Return a sound picture of some mode, size and format."""
    mode, (width, height) = rng.choice(MODES), rng.choice(SIZES)
    values = np.frombuffer(rng.randbytes(width * height), np.uint8).reshape(height, width)
    plain = Image.fromarray(values)
    if mode in ("LAB", "HSV"):
        image = Image.merge(mode, (plain, plain, plain))
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "F":
        scaled = values.astype(np.float32) * np.float32(rng.choice((1, 1e30, -1, 1 / 255)))
        scaled[0, 0] = rng.choice((0, float("nan"), float("inf")))
        image = Image.fromarray(scaled)
    else:
        image = plain.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 1, 6, 8, 9, 65535))
    more = {"exif": exif.tobytes()} if rng.random() < 0.3 else {}
    for name in rng.sample(FORMATS, len(FORMATS)):
        out = io.BytesIO()
        try:
            if name in ("GIF", "TIFF", "WEBP") and rng.random() < 0.3:
                image.save(out, name, save_all=True, append_images=[image] * rng.randint(1, 5))
            elif name == "JPEG":
                image.save(out, name, progressive=rng.random() < 0.5, **more)
            else:
                image.save(out, name, **(more if name in ("PNG", "WEBP", "TIFF") else {}))
        except (OSError, ValueError, KeyError, RuntimeError, SystemError, struct.error):
            continue  # this format cannot hold this mode
        return out.getvalue()
    plain.save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def truncated(rng: random.Random) -> bytes:
    whole = picture(rng)
    return whole[: rng.randrange(len(whole) + 1)]


def flipped(rng: random.Random) -> bytes:
    """Flip bits, half of the time in the header alone."""
    data = bytearray(picture(rng))
    end = len(data) if rng.random() < 0.5 else min(len(data), 128)
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def numbered(rng: random.Random) -> bytes:
    """Put the largest and other odd numbers where there may be lengths, sizes and offsets."""
    data = bytearray(picture(rng))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(data), 200) - 4))
        number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 65_535, 100_000, 10_000))
        data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(data)


def spliced(rng: random.Random) -> bytes:
    """Join the beginning of one picture to the end of another: a polyglot."""
    first, second = picture(rng), picture(rng)
    return first[: rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1) :]


def repeated(rng: random.Random) -> bytes:
    """Repeat a piece of a picture many times."""
    whole = picture(rng)
    at = rng.randrange(len(whole))
    piece = whole[at : at + rng.randint(1, 64)]
    return whole[:at] + piece * rng.choice((2, 100, 10_000)) + whole[at:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(rng: random.Random) -> bytes:
    """Return a small file that promises, or unpacks to, far more than it holds."""
    side = rng.choice((10_001, 20_000, 65_535, 1_000_000, 2**31 - 1))
    kind = rng.choice(("png", "png text", "bmp", "gif", "pgm", "tiff", "jpeg"))
    if kind.startswith("png"):
        text = zlib.compress(b"\0" * 30_000_000, 9) if kind == "png text" else b""
        small = side if not text else 8
        header = struct.pack(">IIBBBBB", small, small, 8, 2, 0, 0, 0)
        extra = png_chunk(b"zTXt", b"a\0\0" + text) if text else b""
        body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(bytes(999)))
        return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")
    if kind == "bmp":
        header = struct.pack(
            "<IiiHHIIiiII", 40, min(side, 2**31 - 1), side, 1, 24, 0, 0, 0, 0, 0, 0
        )
        return b"BM" + struct.pack("<IHHI", 999, 0, 0, 54) + header + bytes(99)
    if kind == "gif":
        size = struct.pack("<HH", 65_535, 65_535)
        return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\2\2L\1\0;"
    if kind == "pgm":
        return b"P5 %d %d 255\n" % (side, side) + bytes(99)
    if kind == "tiff":
        tags = ((256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8))
        rows = b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in (*tags, (279, 4, 9)))
        return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 7) + rows + bytes(4)
    out = io.BytesIO()
    Image.new("L", (64, 64)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    at = data.index(b"\xff\xc2")  # the frame's header: length, precision, height, width
    return data[: at + 5] + struct.pack(">HH", 10_000, 9_000) + data[at + 9 :]


def noise(rng: random.Random) -> bytes:
    magic = (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"RIFF",
        b"BM",
        b"P6 ",
    )
    return rng.choice(magic) + rng.randbytes(rng.randrange(2000))


KINDS = (picture, truncated, flipped, numbered, spliced, repeated, bomb, noise)


def bad_picture(rng: random.Random) -> tuple[str, bytes]:
    """Return the name and the bytes of a file."""
    name = rng.choice(ODD_NAMES) if rng.random() < 0.3 else f"{rng.randrange(999)}"
    return name.replace("/", "_") + rng.choice(SUFFIXES), rng.choice(KINDS)(rng)
