import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.data.decode import DecodeError, decode, probe
from transferkit.data.depth import common_range, measured_range
from transferkit.data.index import ScanOptions, depth_notice, scan
from transferkit.data.reading import Reading, reading_from

TYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float16", "float32", "float64")


def write_tiff(path: Path, values: np.ndarray, **how) -> None:
    """Write (H, W, B) values. how: order, photometric, planar, rows (of a strip), tile, ..."""
    order, photometric = how.get("order", "<"), how.get("photometric", 2)
    height, width, count = values.shape
    data = np.ascontiguousarray(values.astype(values.dtype.newbyteorder(order)))
    planes = [data[..., n] for n in range(count)] if how.get("planar") else [data]
    tile, rows = how.get("tile"), how.get("rows", height)
    blocks = []
    for plane in planes:
        if tile is None:
            blocks += [plane[top : top + rows].tobytes() for top in range(0, height, rows)]
            continue
        pad = [(0, -height % tile), (0, -width % tile), *[(0, 0)] * (plane.ndim - 2)]
        padded = np.pad(plane, pad)
        blocks += [
            np.ascontiguousarray(padded[y : y + tile, x : x + tile]).tobytes()
            for y in range(0, height, tile)
            for x in range(0, width, tile)
        ]
    if how.get("compression") == 8:
        blocks = [zlib.compress(block) for block in blocks]
    bits, kind = 8 * values.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    sizes, at, places = [len(block) for block in blocks], 8, []
    for size in sizes:
        places.append(at)
        at += size + size % 2
    entries = {
        256: [width], 257: [height], 258: [bits] * count, 259: [how.get("compression", 1)],
        262: [photometric], 277: [count], 284: [2 if how.get("planar") else 1],
        **({278: [rows], 273: places, 279: sizes} if tile is None else
           {322: [tile], 323: [tile], 324: places, 325: sizes}),
        339: [kind] * count, **({338: how["extra"]} if "extra" in how else {}),
    }  # fmt: skip
    table, more = b"", b""
    start = at + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        where = packed if len(numbers) == 1 else struct.pack(f"{order}I", start + len(more))
        more += b"" if len(numbers) == 1 else packed
        table += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    body = b"".join(block + bytes(len(block) % 2) for block in blocks)
    count_of = struct.pack(f"{order}H", len(entries))
    path.write_bytes(head + body + count_of + table + bytes(4) + more)


def ramp(count: int, dtype: str, height: int = 20, width: int = 30) -> np.ndarray:
    values = np.random.default_rng(5).integers(0, 100, (height, width, count))
    return (values / 100 if dtype.startswith("f") else values).astype(dtype)


@settings(max_examples=120, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    count=st.integers(1, 7),
    order=st.sampled_from("<>"),
    planar=st.booleans(),
    rows=st.sampled_from([1, 7, 20]),
    tile=st.sampled_from([None, 16]),
    compression=st.sampled_from([1, 8]),
)
def test_any_tiff_of_any_bands_is_read_band_by_band(
    tmp_path_factory, dtype, count, order, planar, rows, tile, compression
):
    path = tmp_path_factory.mktemp("bands") / "a.tif"
    values = ramp(count, dtype)
    layout = {"order": order, "planar": planar, "rows": rows, "tile": tile}
    write_tiff(path, values, photometric=1, compression=compression, **layout)
    full = 0.99 if dtype.startswith("f") else 99.0
    wanted = [1, min(2, count), count] if count > 3 else []
    reading = Reading(depth_range=(0.0, full), bands=tuple(wanted))
    picks = [n - 1 for n in wanted] if wanted else [0, 1, 2] if count == 3 else [0, 0, 0]
    expected = values[..., picks].astype(np.float64)
    if dtype != "uint8":
        expected = expected / full * 255
    found = np.asarray(decode(path, reading))
    assert np.abs(found - expected).max() <= 0.51
    if dtype == "uint8" and count == 1:  # what Pillow reads by itself
        with Image.open(path) as shown:
            assert np.array_equal(found, shown.convert("RGB"))
    if dtype == "uint8" and count == 3:
        write_tiff(path, values, photometric=2, compression=compression, **layout)
        with Image.open(path) as shown:
            assert np.array_equal(decode(path, reading), shown.convert("RGB"))


def test_many_bands_without_a_name_are_a_true_line(tmp_path):
    write_tiff(tmp_path / "a.tif", ramp(12, "uint16"), photometric=1)
    with pytest.raises(
        DecodeError,
        match=r"^12 bands: name the three to see \(finetune and inspect: --bands 3,2,1\)$",
    ):
        decode(tmp_path / "a.tif")
    with pytest.raises(DecodeError, match="it has 12 bands, no band 13"):
        decode(tmp_path / "a.tif", Reading(bands=(1, 2, 13)))
    write_tiff(tmp_path / "rgb.tif", ramp(5, "uint8"), photometric=2, extra=[0, 0])
    assert np.array_equal(np.asarray(decode(tmp_path / "rgb.tif")), ramp(5, "uint8")[..., :3])


def test_a_cut_tiff_of_floats_is_truncated(tmp_path):
    write_tiff(tmp_path / "a.tif", ramp(3, "float64"))
    data = (tmp_path / "a.tif").read_bytes()
    middle = data[:8] + data[4000:]
    (tmp_path / "b.tif").write_bytes(middle)
    with pytest.raises(DecodeError):
        decode(tmp_path / "b.tif")


def png_16(path: Path, values: np.ndarray) -> None:
    """Write (H, W, 2..4) uint16 values as a PNG, with every filter but the last two in turn."""
    height, width, count = values.shape
    octets = values.astype(">u2").view(np.uint8).reshape(height, -1).astype(np.int64)
    rows, step = b"", 2 * count
    for n, row in enumerate(octets):
        left = np.concatenate([np.zeros(step, np.int64), row[:-step]])
        above = octets[n - 1] if n else np.zeros_like(row)
        made = (row, row - left, row - above, row - (left + above) // 2)[n % 4]
        rows += bytes([n % 4]) + (made % 256).astype(np.uint8).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    colours = {2: 4, 3: 2, 4: 6}[count]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_twelve_bits_in_a_colour_png_are_read_to_the_last(tmp_path, count):
    values = np.random.default_rng(1).integers(0, 4096, (9, 11, count)).astype(np.uint16)
    if count != 3:
        values[..., -1] = 65535
    png_16(tmp_path / "a.png", values)
    found = np.asarray(decode(tmp_path / "a.png", Reading(depth_range=(0.0, 4095.0))))
    colours = values[..., [0, 0, 0] if count == 2 else [0, 1, 2]]
    assert np.array_equal(found, np.rint(colours / 4095 * 255).astype(np.uint8))
    low, high = probe(tmp_path / "a.png").range
    assert low == pytest.approx(values[..., : count - (count != 3)].min(), abs=60)
    assert high == pytest.approx(4095, abs=60)


def test_bright_pictures_in_colours_count_with_dark_ones(tmp_path):
    for n, most in enumerate((900, 900, 900, 60000, 60000, 60000)):
        values = np.random.default_rng(n).integers(0, most, (8, 8, 3)).astype(np.uint16)
        place = tmp_path / "train" / "ab"[n > 2]
        place.mkdir(parents=True, exist_ok=True)
        png_16(place / f"{n}.png", values)
        (tmp_path / "val" / "ba"[n > 2]).mkdir(parents=True, exist_ok=True)
        png_16(tmp_path / "val" / "ba"[n > 2] / f"{n}v.png", values)
    assert scan(tmp_path).reading.depth_range == (0.0, 65535.0)


def waves(folder: Path, dtype: str, number: int = 6) -> None:
    for n in range(number):
        values = np.random.default_rng(n).integers(300 + 10 * n, 1300 + 10 * n, (32, 32))
        for split in ("train", "val"):
            place = folder / split / "ab"[n % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(dtype)).save(place / f"{n}.tif")


def test_a_data_set_has_one_scale_whatever_its_type(tmp_path):
    pictures = {}
    for dtype in ("uint16", "int32", "float32"):
        waves(tmp_path / dtype, dtype)
        index = scan(tmp_path / dtype)
        low, high = index.reading.depth_range
        assert (low, high) == (pytest.approx(300, abs=25), pytest.approx(1350, abs=25))
        assert f"values {low:,.6g} to {high:,.6g} become black to white" in depth_notice(index)
        pictures[dtype] = [np.asarray(decode(index.file(n), index.reading)) for n in range(6)]
        assert all(picture.std() > 60 for picture in pictures[dtype])
    assert np.array_equal(pictures["uint16"], pictures["float32"])
    assert np.array_equal(pictures["uint16"], pictures["int32"])
    given = scan(tmp_path / "uint16", ScanOptions(reading=Reading(depth_range=(0.0, 4095.0))))
    assert given.reading.depth_range == (0.0, 4095.0)


def test_the_limit_of_early_runs_was_a_default():
    early = {"background": "white", "max_pixels": 100_000_000}
    assert reading_from(early) == Reading()
    assert reading_from({**early, "max_pixels": 99}).max_pixels == 99
    now = Reading(max_pixels=100_000_000, depth_range=(0.0, 4095.0), bands=(3, 2, 1))
    assert reading_from({"background": "white", **now.entries()}) == now


def test_pictures_of_8_bits_have_no_scale(tmp_path):
    waves(tmp_path, "uint8")
    index = scan(tmp_path)
    assert index.reading == Reading()
    assert depth_notice(index) == ""


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], None),
        ([(10.0, 60000.0), (0.0, 900.0)], (0.0, 65535.0)),
        ([(0.0, 0.9)], (0.0, 1.0)),
        ([(3.0, 200.0)], (0.0, 255.0)),
        ([(300.0, 1400.0)], (300.0, 1400.0)),
        ([(-1000.0, 3000.0)], (-1000.0, 3000.0)),
        ([(7.0, 7.0)], (7.0, 8.0)),
        ([(0.0, 4000.0)] * 99 + [(0.0, 65535.0)], (0.0, 4000.0)),
    ],
)
def test_the_common_range(ranges, expected):
    assert common_range(ranges) == expected


def test_a_hot_and_a_dead_pixel_do_not_count():
    values = np.linspace(100, 200, 10_000).reshape(100, 100)
    values[0, 0], values[50, 50], values[1, 1] = 65535, -9999, np.nan
    low, high = measured_range(values)
    assert (low, high) == (pytest.approx(100, abs=1), pytest.approx(200, abs=1))
    assert measured_range(np.full((3, 3), np.nan)) is None
