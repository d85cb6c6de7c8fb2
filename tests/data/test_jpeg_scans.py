import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.decode import DecodeError, decode, probe
from transferkit.data.jpeg_scans import count_scans


def jpeg(progressive: bool, **more: object) -> bytes:
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    image.save(out, "JPEG", progressive=progressive, **more)
    return out.getvalue()


def with_scans(more: int) -> bytes:
    """Repeat the last scan of a progressive picture."""
    data = jpeg(progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * more + b"\xff\xd9"


def test_scans_are_counted_and_the_position_stays() -> None:
    file = io.BytesIO(jpeg(progressive=False))
    file.seek(7)
    assert count_scans(file) == 1
    assert file.tell() == 7
    usual = count_scans(io.BytesIO(jpeg(progressive=True)))
    assert 6 <= usual <= 15  # libjpeg's own script for colour has 10
    for more in (1, 5):
        assert count_scans(io.BytesIO(with_scans(more))) == usual + more
    assert count_scans(io.BytesIO(with_scans(500)), most=20) == 21


def test_what_lies_inside_of_segments_or_behind_the_end_does_not_count() -> None:
    inside = jpeg(progressive=False, comment=b"\xff\xda\x00\x08" * 200)
    assert count_scans(io.BytesIO(inside)) == 1
    assert count_scans(io.BytesIO(jpeg(progressive=False) + jpeg(progressive=True))) == 1
    assert count_scans(io.BytesIO(b"\xff\xd8")) == 0


def test_a_picture_of_too_many_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(with_scans(5))
    assert decode(path).size == (56, 40)
    path.write_bytes(with_scans(60))
    for read in (decode, probe):
        with pytest.raises(DecodeError, match="more than 50 scans"):
            read(path)
