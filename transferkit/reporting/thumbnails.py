"""Small pictures as data URIs, so that a page carries them itself."""

import base64
import io
from pathlib import Path

from PIL import Image

from transferkit.data.decode import DecodeError, decode
from transferkit.data.reading import Reading

SIDE_PX = 176
QUALITY = 78


def thumbnail(file: Path | None, reading: Reading, side_px: int = SIDE_PX) -> str:
    """Return a picture as a JPEG data URI at most `side_px` wide and high; "" if it is gone."""
    if file is None:
        return ""
    try:
        image = decode(file, reading, side_px)
    except (DecodeError, OSError):
        return ""
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return jpeg_uri(image)


def jpeg_uri(image: Image.Image) -> str:
    """Return an RGB picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    """Return an image file as a data URI. kind: "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
