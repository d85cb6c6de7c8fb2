import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.kept import KeptPictures


def picture(seed: int, size: tuple[int, int] = (7, 5)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def never() -> Image.Image:
    raise AssertionError("decoded again")


def test_a_picture_is_decoded_once_and_comes_back_the_same(tmp_path: Path) -> None:
    kept = KeptPictures(tmp_path)
    for seed in range(3):
        kept.get(seed, lambda: picture(seed, (4 + seed, 9)))  # noqa: B023
    for seed in (2, 0, 1):
        again = kept.get(seed, never)
        assert again.mode == "RGB"
        assert np.array_equal(np.asarray(again), np.asarray(picture(seed, (4 + seed, 9))))


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    kept = KeptPictures(tmp_path)
    kept.get("a", lambda: picture(0))
    assert not list(tmp_path.iterdir())


def test_what_finds_no_room_is_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(4 * 2 * 3 * 7 * 5))
    kept = KeptPictures(tmp_path)
    for seed in range(3):
        kept.get(seed, lambda: picture(seed))  # noqa: B023
    assert np.array_equal(np.asarray(kept.get(1, never)), np.asarray(picture(1)))
    with pytest.raises(AssertionError, match="decoded again"):
        kept.get(2, never)


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptPictures(tmp_path)
    kept.get(0, lambda: picture(0))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transferkit.data.kept.os.pwrite", full)
    assert kept.get(1, lambda: picture(1)).size == (7, 5)
    assert np.array_equal(np.asarray(kept.get(0, never)), np.asarray(picture(0)))
