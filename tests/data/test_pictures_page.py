"""docs/pictures.md: its table is what a test writes and reads; run this file to write it anew."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from test_depth import png_16, write_tiff

from transferkit.data.decode import DecodeError, decode, probe
from transferkit.data.reading import PLAIN, Reading

PAGE = Path(__file__).resolve().parents[2] / "docs/pictures.md"
FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "AVIF": ("RGB", "RGBA"),
    "MPO": ("RGB",),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "ICO": ("RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "DDS": ("L", "RGB", "RGBA"),
}
DEPTH = {"1": 1, "I;16": 16, "I": 32, "F": 32}


def files(folder: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Write a picture of every kind; yield its format, mode, depth and file."""
    grey = np.tile(np.arange(48, dtype=np.uint8) * 5, (40, 1))
    for kind, modes in FORMATS.items():
        for mode in modes:
            path = folder / f"{kind}-{mode.replace(';', '')}.img"
            if mode in ("I;16", "I", "F"):
                deep = grey.astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]) * 16
                image = Image.fromarray(deep)
            else:
                colours = np.stack([grey, grey[:, ::-1], grey], axis=-1)
                image = Image.fromarray(colours).convert(mode)
            image.save(path, kind)
            yield kind, mode, f"{DEPTH.get(mode, 8)}", path
    for name, count in (("LA", 2), ("RGB", 3), ("RGBA", 4)):
        values = np.stack([grey.astype(np.uint16) * 16] * count, axis=-1)
        png_16(folder / f"{name}.png", values)
        yield "PNG", name, "16", folder / f"{name}.png"
    for dtype in ("uint16", "float16", "float32", "float64"):
        write_tiff(folder / f"{dtype}.tif", np.stack([grey.astype(dtype)] * 3, axis=-1))
        yield "TIFF", "RGB", dtype, folder / f"{dtype}.tif"
    write_tiff(folder / "64.tif", grey.astype("f8")[..., None], photometric=1)
    yield "TIFF", "grey", "float64", folder / "64.tif"
    for dtype in ("uint8", "uint16"):
        write_tiff(folder / f"5{dtype}.tif", np.stack([grey.astype(dtype)] * 5, -1), photometric=1)
        yield "TIFF", "5 bands", dtype, folder / f"5{dtype}.tif"
    for name, start in (
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("JPEG XL", b"\xff\x0a\xfa\x7f"),
        ("OpenEXR", b"\x76\x2f\x31\x01"),
        ("DICOM", bytes(128) + b"DICM"),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("PDF", b"%PDF-1.7"),
        ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\n"),
        ("HTML page", b"<!DOCTYPE html><html>"),
        ("JPEG of 12 bits", b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x10\0\x10\x01\x01\x11\0" + bytes(9)),
    ):
        (folder / "x.bin").write_bytes(start)
        yield name, "-", "-", folder / "x.bin"


def outcome(path: Path, reading: Reading = PLAIN) -> str:
    """Say what becomes of a file."""
    try:
        found = probe(path, reading)
        assert decode(path, reading).size == (found.width, found.height)
    except DecodeError as error:
        return f"refused: {error}"
    if found.range is not None:
        return "converted: one scale for the data set, see --depth-range"
    if "A" in found.mode and found.mode != "LAB":
        return "converted: laid on --background"
    return "read" if found.mode == "RGB" else f"converted from {found.mode}"


def table(folder: Path) -> str:
    rows = ["| format | mode | bits | what becomes of it |", "| --- | --- | --- | --- |"]
    rows += [f"| {kind} | {mode} | {bits} | {outcome(path)} |" for kind, mode, bits, path in files(folder)]  # fmt: skip  # noqa: E501
    rows += [f"| TIFF | 5 bands | uint16, with `--bands 3,2,1` | {outcome(folder / '5uint16.tif', Reading(bands=(3, 2, 1)))} |"]  # fmt: skip  # noqa: E501
    return "\n".join(rows) + "\n"


def test_the_page_says_what_becomes_of_every_format(tmp_path):
    text = PAGE.read_text()
    written_with = re.search(r"Pillow (\d+)\.", text)
    assert written_with
    if PIL.__version__.split(".")[0] != written_with[1]:
        pytest.skip(f"the page is of Pillow {written_with[1]}")
    assert table(tmp_path) in text


def write_page() -> None:
    before, _, rest = PAGE.read_text().partition("| format |")
    after = rest[rest.rindex("|\n") + 2 :]
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(before + table(Path(folder)) + after)


if __name__ == "__main__":
    write_page()
