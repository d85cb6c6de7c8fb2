from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.unlabeled import MOST_HELD_OUT, held_out, scan_unlabeled
from transferkit.errors import UserError


def test_every_picture_below_the_folder_is_read_whatever_the_folders_are_called(
    unlabeled: Path,
) -> None:
    index = scan_unlabeled(unlabeled, holdout=0.1)
    assert len(index) == 27
    assert index.classes == ("",)
    assert not index.labels.any()
    assert len(index.of_split("val")) == 3
    assert len(index.of_split("train")) == 24


def test_folders_can_be_identities(unlabeled: Path) -> None:
    index = scan_unlabeled(unlabeled, by_folder=True)
    assert index.classes == ("deep/er", "flat")
    assert np.bincount(index.labels).tolist() == [13, 14]


def test_what_is_kept_aside_depends_on_the_files_not_on_their_order() -> None:
    digests = [f"{number:04d}" for number in range(40)]
    splits = dict(zip(digests, held_out(digests, 0.25, seed=3), strict=True))
    assert list(splits.values()).count("val") == 10
    backwards = dict(zip(digests[::-1], held_out(digests[::-1], 0.25, seed=3), strict=True))
    assert splits == backwards
    assert splits != dict(zip(digests, held_out(digests, 0.25, seed=4), strict=True))


def test_copies_of_a_picture_are_never_in_both_parts() -> None:
    digests = ["a"] * 6 + ["b", "c", "d", "e"]
    splits = held_out(digests, 0.3, seed=0)
    assert splits.count("val") == 3
    assert splits[:6] == ["train"] * 6


def test_no_more_is_kept_aside_than_is_looked_at() -> None:
    splits = held_out([str(number) for number in range(4000)], 0.5, seed=0)
    assert splits.count("val") == MOST_HELD_OUT
    assert held_out(["a", "b"], 0.5, seed=0) == ["train", "train"]
    assert held_out(["a", "b", "c"], 0, seed=0) == ["train"] * 3


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_pictures_teach_nothing(tmp_path: Path, number: int) -> None:
    for position in range(number):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{position}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"{number} readable picture") as refused:
        scan_unlabeled(tmp_path)
    assert refused.value.exit_code == 1
    assert "broken.png" in refused.value.where


def test_unreadable_pictures_are_left_out_or_with_strict_an_error(tmp_path: Path) -> None:
    for position in range(3):
        Image.new("RGB", (9, 9), (position, 0, 0)).save(tmp_path / f"{position}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    index = scan_unlabeled(tmp_path)
    assert len(index) == 3
    assert any("1 of 4 pictures cannot be read" in text for text in index.warnings)
    with pytest.raises(UserError, match="unreadable"):
        scan_unlabeled(tmp_path, strict=True)


def test_a_folder_that_is_not_there_is_a_wrong_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as refused:
        scan_unlabeled(tmp_path / "nowhere")
    assert refused.value.exit_code == 2
