import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import transferkit.data.formats as formats
from transferkit.data.decode import DecodeError, decode, probe
from transferkit.data.reading import Reading


def noise(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def saved(kind: str, **options) -> bytes:
    noise().save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    crc = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


PACKED = zlib.compress(bytes(1_400_000))
CHUNKS = {
    "text": chunk(b"zTXt", b"workflow\0\0" + PACKED),
    "international": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED),
    "profile": chunk(b"iCCP", b"Printer\0\0" + PACKED),
    "damaged text": chunk(b"tEXt", b"a\0b", wrong=1),
    "damaged profile": chunk(b"iCCP", b"x\0\0nonsense"),
    "many": b"".join(
        chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(10**6))) for n in range(70)
    ),
    "damaged exif": chunk(b"eXIf", b"II*\0", wrong=1),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("place", [33, -12])
def test_what_is_no_pixel_of_a_png_does_not_matter(tmp_path, name, place):
    png = saved("PNG")
    (tmp_path / "a.png").write_bytes(png[:place] + CHUNKS[name] + png[place:])
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png")), np.asarray(noise()))
    assert probe(tmp_path / "a.png").width == 61
    (tmp_path / "b.png").write_bytes(png[:33] + CHUNKS[name] + png[33:2000])
    with pytest.raises(DecodeError, match="truncated"):
        decode(tmp_path / "b.png")


def test_the_orientation_stays_with_a_png_that_is_mended(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    png = saved("PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(png[:33] + CHUNKS["text"] + png[33:])
    assert decode(tmp_path / "a.png").size == (43, 61)


JPEGS = [
    {},
    {"quality": 95, "subsampling": 0},
    {"progressive": True},
    {"progressive": True, "quality": 95, "subsampling": 0},
    {"restart_marker_blocks": 3},
    {"optimize": True},
]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_its_end_marker_is_whole(tmp_path, options, lost):
    data = saved("JPEG", **options)
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "a.jpg").write_bytes(data[:-lost])
    with Image.open(tmp_path / "whole.jpg") as shown:
        assert np.array_equal(decode(tmp_path / "a.jpg"), shown)
    assert probe(tmp_path / "a.jpg").dhash == probe(tmp_path / "whole.jpg").dhash


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, len(JPEGS) - 1), lost=st.integers(6, 3000), ended=st.booleans())
def test_a_jpeg_that_lacks_pixels_is_truncated(tmp_path_factory, number, lost, ended):
    data = saved("JPEG", **JPEGS[number])
    path = tmp_path_factory.mktemp("cut") / "a.jpg"
    path.write_bytes(data[:-lost])
    for read in (decode, probe):
        with pytest.raises(DecodeError):
            read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a git-lfs pointer",
        ),
        (b"/annex/objects/SHA256E-s1--0.jpg\n", "a git-annex pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not an image"),
        (b"\n<html>\n<head>", "an HTML page, not an image"),
        (
            b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
            "XML text, not an image: <error>",
        ),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG (not supported)"),
        (b'{"message": "Not Found"}', 'text, not an image: {"message": "Not Found"}'),
        (b"\0" * 500, "nothing but zero bytes"),
        (b"%PDF-1.7 ", "a PDF document"),
        (b"PK\x03\x04 ", "a ZIP archive"),
        (b"\0\0\0\x18ftypmp42" + bytes(50), "a video, not an image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL (not supported)"),
        (bytes(128) + b"DICM" + bytes(9), "DICOM (not supported)"),
        (bytes(range(1, 200)), "not an image"),
    ],
)
def test_what_is_no_picture_is_told_as_what_it_is(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        decode(tmp_path / "a.jpg")
    assert str(caught.value).startswith(reason)


def test_heic_is_read_with_the_extra_and_its_name_is_told_without(tmp_path, monkeypatch):
    plugin = pytest.importorskip("pillow_heif")
    plugin.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(tmp_path / "a.heic")
    found = decode(tmp_path / "a.heic")
    assert found.size == (64, 48)
    assert np.abs(np.asarray(found, dtype=int) - (200, 40, 40)).max() < 12
    formats_without = tuple(name for name in formats.readable_formats() if name != "HEIF")
    monkeypatch.setattr(formats, "readable_formats", lambda: formats_without)
    monkeypatch.setattr("transferkit.data.decode.readable_formats", lambda: formats_without)
    with pytest.raises(DecodeError) as caught:
        decode(tmp_path / "a.heic")
    assert str(caught.value) == "HEIC (pip install 'transferkit[heic]' to read it)"


def test_the_limits_of_pixels_are_this_projects(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    noise(400, 300).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (400, 300)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(DecodeError, match=r"^120,000 pixels, more than the limit of 1,000 "):
        decode(tmp_path / "a.png", Reading(max_pixels=1000))
    monkeypatch.setattr("transferkit.data.reading.MOST_MEMORY", 400_000)
    monkeypatch.setattr("transferkit.data.decode.MOST_MEMORY", 400_000)
    with pytest.raises(DecodeError, match=r"take 0 MB to decode.*--max-pixels (\d+) allows") as bad:
        decode(tmp_path / "a.png")
    advice = int(str(bad.value).rsplit("--max-pixels ", 1)[1].split()[0])
    assert decode(tmp_path / "a.png", Reading(max_pixels=advice)).size == (400, 300)
    with pytest.raises(DecodeError):
        decode(tmp_path / "a.png", Reading(max_pixels=advice - 1))


def test_a_picture_that_does_not_fit_into_memory_is_its_own_error(tmp_path, monkeypatch):
    from transferkit.data.loader import ViewMaker
    from transferkit.data.preprocessing import Preprocessing

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("transferkit.data.loader.clean_view", full)
    noise().save(tmp_path / "a.png")
    size = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DecodeError, match="more memory needed than there is"):
        ViewMaker(size).readable_views(Path(tmp_path / "a.png"), 0, (0,))
