import contextlib
import importlib.util
import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.data.decode import (
    DecodeError,
    decode,
    difference_hash,
    probe,
)
from transferkit.data.formats import image_suffixes, readable_formats
from transferkit.data.reading import Reading

SIX_BY_FOUR = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) * 3

HEIF = importlib.util.find_spec("pillow_heif") is not None


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def pixel(path: Path, **options) -> tuple[int, ...]:
    return decode(path, Reading(**options)).getpixel((0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(tmp_path, orientation):
    stored = {
        1: SIX_BY_FOUR,
        2: SIX_BY_FOUR[:, ::-1],
        3: SIX_BY_FOUR[::-1, ::-1],
        4: SIX_BY_FOUR[::-1],
        5: SIX_BY_FOUR.transpose(1, 0, 2),
        6: np.rot90(SIX_BY_FOUR, 1),
        7: SIX_BY_FOUR[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(SIX_BY_FOUR, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tiff"):
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif)
        assert np.array_equal(np.asarray(decode(tmp_path / name)), SIX_BY_FOUR)
        found = probe(tmp_path / name)
        assert (found.width, found.height) == (6, 4)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_a_large_picture_is_turned_in_strips(tmp_path, monkeypatch, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = Image.fromarray(np.arange(5757, dtype=np.uint16).reshape(101, 57) * 11)
    picture = deep if mode == "I;16" else noise(57, 101).convert(mode)
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "unturned.png")
    decode(tmp_path / "unturned.png").reduce(3).save(tmp_path / "small.png", exif=exif)
    expected = [decode(tmp_path / "a.png"), decode(tmp_path / "small.png")]
    monkeypatch.setattr("transferkit.data.decode._LARGE_PIXELS", 1000)
    monkeypatch.setattr("transferkit.data.decode._STRIP_PIXELS", 1000)
    found = [decode(tmp_path / "a.png"), decode(tmp_path / "a.png", at_least_px=19)]
    assert [np.array_equal(*pair) for pair in zip(found, expected, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (0, 0, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 51), (51, 0, 204)),
        ("LA", (100, 0), (0, 0, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 40, (40, 40, 40)),
    ],
)
def test_modes_of_png(tmp_path, mode, colour, expected):
    Image.new(mode, (5, 3), colour).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png", background=(0, 0, 255)) == expected


def test_the_default_background_is_white(tmp_path):
    Image.new("RGBA", (2, 2), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == (255, 255, 255)


def test_palette_with_transparency_is_composited(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "index.gif", transparency=0)
    picture.save(tmp_path / "bytes.png", transparency=bytes([0, 255]))
    for name in ("index.gif", "bytes.png"):
        image = decode(tmp_path / name, Reading(background=(1, 2, 3)))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), (200, 100, 50)]


def test_a_transparent_colour_of_rgb_and_grey_png_is_composited(tmp_path):
    Image.new("RGB", (2, 2), (5, 6, 7)).save(tmp_path / "a.png", transparency=(5, 6, 7))
    Image.new("L", (2, 2), 9).save(tmp_path / "b.png", transparency=9)
    assert pixel(tmp_path / "a.png") == pixel(tmp_path / "b.png") == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 100.0, 255.0], [0, 100, 255]),
        ("F", [-1.0, 0.0, 3.0], [0, 64, 255]),
        ("F", [float("nan"), 0.0, 1.0], [0, 0, 255]),
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 25700, 65535], [0, 100, 255]),
        ("I", [-1000, 0, 1000], [0, 128, 255]),
        ("I", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(tmp_path, mode, values, expected):
    kind = np.float32 if mode == "F" else np.int32
    Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "a.tiff")
    assert np.asarray(decode(tmp_path / "a.tiff"))[0, :, 0].tolist() == expected


def test_sixteen_bit_pgm_has_full_scale_even_when_dark(tmp_path):
    header = b"P5 2 1 65535\n"
    (tmp_path / "a.pgm").write_bytes(header + struct.pack(">HH", 0, 257 * 3))
    assert np.asarray(decode(tmp_path / "a.pgm"))[0, :, 1].tolist() == [0, 3]


def test_cmyk_jpeg_and_lab_tiff_keep_their_colours(tmp_path):
    red = Image.new("RGB", (16, 16), (230, 30, 30))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    red.convert("LAB").save(tmp_path / "a.tiff")
    for name in ("a.jpg", "a.tiff"):
        assert np.abs(np.subtract(pixel(tmp_path / name), (230, 30, 30))).max() <= 6


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.abs(np.subtract(pixel(path), (250, 0, 0))).max() <= 8


@pytest.mark.parametrize("suffix", ["bmp", "gif", "ico", "jp2", "jpg", "pcx", "png", "ppm", "sgi"])
def test_formats_decode_by_content_whatever_their_suffix(tmp_path, suffix):
    data = io.BytesIO()
    format_name = Image.registered_extensions()[f".{suffix}"]
    Image.new("RGB", (16, 16), (0, 120, 0)).save(data, format_name)
    (tmp_path / "wrong.PNG").write_bytes(data.getvalue())
    found = probe(tmp_path / "wrong.PNG")
    assert (found.width, found.height, found.format) == (16, 16, format_name)


def test_a_reduced_jpeg_keeps_its_shorter_side(tmp_path):
    noise(640, 400).save(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg").size == (640, 400)
    assert decode(tmp_path / "a.jpg", at_least_px=200).size == (320, 200)
    assert decode(tmp_path / "a.jpg", at_least_px=201).size == (640, 400)
    found = probe(tmp_path / "a.jpg")
    assert (found.width, found.height) == (640, 400)


def write_bad_files(folder: Path) -> dict[str, str]:
    noise(80, 60).save(folder / "good.jpg")
    noise(80, 60).save(folder / "good.png")
    jpeg, png = (folder / "good.jpg").read_bytes(), (folder / "good.png").read_bytes()
    contents = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"hello, I am no picture", "text, not an image: hello, I am no picture"),
        "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(50), "damaged header" if HEIF else "HEIC"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS (not supported)"),
        "header.png": (png[:10] + bytes(20), "damaged header"),
        "crc.png": (png[:60] + b"\xff\xff\xff" + png[63:], "damaged"),
        "huge.png": (
            png_header(30_000, 30_000),
            "900,000,000 pixels, more than the limit of 250,000,000",
        ),
        "big.png": (
            png_header(20_000, 10_000),
            "200,000,000 pixels take 800 MB to decode, more than the limit of 560 MB",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    os.symlink("nowhere", folder / "link.png")
    (folder / "folder.png").mkdir()
    special = {
        "pipe.png": "not a regular file",
        "folder.png": "not a regular file",
        "link.png": "broken link",
        "none.png": "missing",
        "nul\0.png": "cannot be opened",
    }
    return {name: reason for name, (_, reason) in contents.items()} | special


def test_each_bad_file_has_its_reason(tmp_path):
    for name, reason in write_bad_files(tmp_path).items():
        for read in (probe, decode):
            with pytest.raises(DecodeError) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(reason), name


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    start = time.perf_counter()
    with pytest.raises(DecodeError, match="900,000,000"):
        decode(tmp_path / "huge.png")
    assert time.perf_counter() - start < 0.5
    noise(20, 10).save(tmp_path / "small.png")
    with pytest.raises(DecodeError, match="200 pixels, more than the limit of 199"):
        probe(tmp_path / "small.png", Reading(max_pixels=199))
    assert probe(tmp_path / "small.png", Reading(max_pixels=200)).width == 20


def test_warnings_of_pillow_stay_inside_and_others_get_out(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"
    noise(40, 30).save(tmp_path / "a.jpg", exif=exif)
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(probe, [tmp_path / "a.jpg"] * 40):
                assert found.width == 40
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    assert warnings.filters == filters


def test_a_picture_that_others_hold_open_is_still_read_whole(tmp_path):
    noise(30, 30).save(tmp_path / "a.png")
    before = threading.active_count()
    image = decode(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert np.array_equal(np.asarray(image), np.asarray(noise(30, 30)))
    assert threading.active_count() == before


def test_the_digest_is_of_the_bytes_and_the_hash_of_the_picture(tmp_path):
    smooth = noise(8, 8).resize((128, 128), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.save(tmp_path / "b.bmp")
    smooth.resize((64, 64)).save(tmp_path / "c.jpg", quality=50)
    a, b, c = (probe(tmp_path / name) for name in ("a.png", "b.bmp", "c.jpg"))
    assert a.digest != b.digest
    assert len(a.digest) == 32
    assert a.dhash == b.dhash
    assert (a.dhash ^ c.dhash).bit_count() <= 4
    other = difference_hash(noise(8, 8, seed=1).resize((128, 128)))
    assert (a.dhash ^ other).bit_count() > 12


def test_difference_hash_of_ramps_is_all_ones_or_all_zeros():
    ramp = np.tile(np.arange(90, dtype=np.uint8), (80, 1))
    assert difference_hash(Image.fromarray(ramp)) == 0
    assert difference_hash(Image.fromarray(ramp[:, ::-1].copy())) == 2**64 - 1


def test_formats_that_would_start_a_program_are_never_opened():
    assert "EPS" not in readable_formats()
    assert {".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= image_suffixes()
    assert not {".eps", ".pdf", ".h5", ".mpg"} & image_suffixes()


def kept_by_tiff(mode: str) -> bool:
    """Whether Pillow reads what it writes; before 13 it did not for YCbCr."""
    data = io.BytesIO()
    Image.new(mode, (1, 1)).save(data, "TIFF")
    try:
        Image.open(data).load()
    except OSError:
        return False
    return True


MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "LA")


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from([mode for mode in MODES if kept_by_tiff(mode)]),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    data=st.data(),
)
def test_any_mode_and_size_becomes_rgb_of_that_size(tmp_path_factory, mode, width, height, data):
    bands = 1 if mode in ("I", "F", "I;16") else len(Image.new(mode, (1, 1)).getbands())
    octets = {"I": 4, "F": 4, "I;16": 2}.get(mode, bands)
    size = (width + 7) // 8 * height if mode == "1" else width * height * octets
    content = data.draw(st.binary(min_size=size, max_size=size))
    image = Image.frombytes(mode, (width, height), content)
    path = tmp_path_factory.mktemp("modes") / "a.tiff"
    image.save(path)
    decoded = decode(path)
    assert (decoded.mode, decoded.size) == ("RGB", (width, height))
    assert (probe(path).width, probe(path).height) == (width, height)
    if mode not in ("I", "F", "I;16"):
        assert np.array_equal(decoded, shown_by_pillow(path))


def shown_by_pillow(path: Path) -> Image.Image:
    """A file of 8 bits as Pillow shows it, on white."""
    with Image.open(path) as image:
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")


@settings(max_examples=60, deadline=None)
@given(
    cut=st.integers(0, 400),
    junk=st.binary(max_size=60),
    name=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]),
)
def test_damaged_bytes_decode_or_raise_decode_error_only(tmp_path_factory, cut, junk, name):
    data = io.BytesIO()
    noise(12, 9).save(data, name)
    content = data.getvalue()
    path = tmp_path_factory.mktemp("damaged") / "a.img"
    path.write_bytes(content[:cut] + junk + content[cut + len(junk) :])
    with contextlib.suppress(DecodeError):
        assert decode(path).mode == "RGB"


def test_large_deep_grey_needs_little_memory_beside_its_own_and_scales_as_a_whole(tmp_path):
    values = np.linspace(-3, 5, 3000 * 1100, dtype=np.float32).reshape(3000, 1100)
    values[0, 0], values[-1, -1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "deep.tif")
    found = np.asarray(decode(tmp_path / "deep.tif"))[..., 0]
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = finite.min(), finite.max()
    whole = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high) - low) / (high - low)
    assert np.array_equal(found, np.rint(whole * 255).astype(np.uint8))


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2_000_000_001)  # a hole: it takes no room
    with pytest.raises(DecodeError, match="2,000,000,001 bytes, more than the limit"):
        decode(tmp_path / "a.png")
