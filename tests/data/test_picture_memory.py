"""Peak memory of one picture, over generated sizes and formats, above the process at rest."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.decode import DecodeError, decode
from transferkit.data.loader import ViewMaker
from transferkit.data.preprocessing import Preprocessing

MOST_BYTES = 600e6
RESET = Path("/proc/self/clear_refs")
KINDS = (
    *(("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
    *(("TIFF", mode) for mode in ("L", "RGB", "RGBA", "CMYK", "I;16", "I", "F")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("BMP", "RGB"), ("GIF", "P"), ("WEBP", "RGB"), ("PPM", "RGB"), ("TGA", "RGBA")),
)
MAKER = ViewMaker(Preprocessing(224, 224, 0.875, "center", "bicubic", (0.5,) * 3, (0.5,) * 3))


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def write(path: Path, generator: np.random.Generator, most: float) -> str:
    """Write a picture of one colour: kind, area and ratio drawn."""
    kind, mode = KINDS[generator.integers(len(KINDS))]
    area = math.exp(generator.uniform(0, math.log(most)))
    ratio = math.exp(generator.uniform(-9, 9))
    longest = {"GIF": 65_000, "JPEG": 65_000, "WEBP": 16_383, "TGA": 65_000, "BMP": 32_000}
    limit = longest.get(kind, 1_000_000)
    width, height = (min(limit, max(1, round(math.sqrt(area * by)))) for by in (ratio, 1 / ratio))
    exif = Image.Exif()
    exif[0x0112] = int(generator.integers(1, 9))
    more = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    more |= {"progressive": bool(generator.integers(2))} if kind == "JPEG" else {}
    more |= {"compress_level": 1} if kind == "PNG" else {}
    Image.new(mode, (width, height)).save(path, kind, **more)
    return f"{kind} {mode} {width} x {height}, {more}, orientation {exif[0x0112]}"


def check(path: Path, count: int, most: float, seed: int) -> tuple[float, int]:
    """Read `count` pictures; return the highest peak in bytes and how many were read."""
    generator = np.random.default_rng(seed)
    worst, done, above = 0.0, 0, []
    for _ in range(count):
        what = write(path, generator, most)
        RESET.write_text("5")  # the peak is now what is held
        before = status("VmRSS")
        try:
            MAKER.readable_views(path, 0, (0,))
            done += 1
        except DecodeError as error:
            if "--max-pixels" not in str(error):
                raise
        peak = status("VmHWM") - before
        if peak > MOST_BYTES:
            above.append(f"{what}: {peak / 1e6:.0f} MB")
        worst = max(worst, peak)
    assert above == []
    return worst, done


needs_peaks = pytest.mark.skipif(not RESET.exists(), reason="the system does not reset peaks")


@needs_peaks
def test_no_picture_takes_more_memory_than_promised(tmp_path):
    _, done = check(tmp_path / "a.img", 60, 6e6, 0)
    assert done == 60


@needs_peaks
def test_a_strip_of_a_pixel_is_read_in_little_memory(tmp_path):
    for size in ((1, 20_000), (20_000, 1), (1, 500_000), (3, 65_000), (200_000, 140)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        RESET.write_text("5")
        before = status("VmRSS")
        MAKER.readable_views(tmp_path / "a.png", 0, (0,))
        assert status("VmHWM") - before < 200e6


@needs_peaks
def test_a_long_picture_is_turned_without_a_second_copy(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (280_000, 140)).save(tmp_path / "a.png", exif=exif, compress_level=1)
    RESET.write_text("5")
    before = status("VmRSS")
    image = decode(tmp_path / "a.png", at_least_px=256)
    assert image.size == (140, 280_000)
    assert status("VmHWM") - before < 260e6  # of 39 million pixels: 1 byte and 4, not 4 again


@pytest.mark.slow
@needs_peaks
def test_no_large_picture_takes_more_memory_than_promised(tmp_path):
    worst, done = check(tmp_path / "a.img", 5000, 240e6, 1)
    print(f"{done} of 5,000 read, highest peak {worst / 1e6:.0f} MB")
    assert done > 4500
