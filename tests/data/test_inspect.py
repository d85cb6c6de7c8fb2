import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.data.duplicates import exact_groups, near_groups, similar_hashes
from transferkit.data.index import scan
from transferkit.data.inspect import inspect


def smooth(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def birds(tmp_path) -> Path:
    """Two classes; 12 pictures each to train on, 30 each to validate on."""
    for label, name in enumerate(("heron", "stork")):
        for number in range(42):
            part = "train" if number < 12 else "val"
            save(smooth(1000 * label + number), tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_a_sound_data_set_has_no_warnings(birds):
    found = inspect(scan(birds))
    assert found.warnings == ()
    assert found.counts == {
        name: {"train": 12, "val": 30, "test": 0} for name in ("heron", "stork")
    }
    assert (found.sizes.width, found.sizes.height) == ((96, 96.0, 96), (64, 64.0, 64))
    assert (found.imbalance, found.sizes.small, found.pictures) == (1.0, 0, 84)
    assert found.exact_duplicates == found.near_duplicates == found.label_conflicts == ()


def test_duplicates_conflicts_and_look_alikes_are_told_apart(birds):
    shutil.copy(birds / "train/heron/0.png", birds / "val/heron/copy.png")
    shutil.copy(birds / "train/heron/1.png", birds / "train/heron/copy.png")
    shutil.copy(birds / "train/heron/2.png", birds / "train/stork/copy.png")
    half = smooth(1003).resize((48, 32))
    save(half, birds / "val/stork/half.jpg", quality=60)
    save(half, birds / "train/stork/half.jpg", quality=80)
    found = inspect(scan(birds))
    assert [group.paths for group in found.exact_duplicates] == [
        ("train/heron/0.png", "val/heron/copy.png"),
        ("train/heron/1.png", "train/heron/copy.png"),
        ("train/heron/2.png", "train/stork/copy.png"),
    ]
    assert [group.across_splits for group in found.exact_duplicates] == [True, False, False]
    assert [group.labels for group in found.label_conflicts] == [("heron", "stork")]
    assert [group.paths for group in found.near_duplicates] == [
        ("train/stork/3.png", "train/stork/half.jpg", "val/stork/half.jpg")
    ]
    starts = [
        "1 file under more than one class (first: train/heron/2.png and train/stork/copy.png)",
        "1 file in more than one split (first: train/heron/0.png and val/heron/copy.png)",
        "2 exact copies within a split (first: train/heron/1.png and train/heron/copy.png)",
        "1 group of pictures that look alike in more than one split "
        "(first: train/stork/3.png and train/stork/half.jpg, 1 more)",
    ]
    assert len(found.warnings) == len(starts)
    assert all(map(str.startswith, found.warnings, starts))


def test_the_inspection_is_plain_json(birds):
    shutil.copy(birds / "train/heron/0.png", birds / "val/heron/copy.png")
    (birds / "val/heron/bad.png").write_bytes(b"")
    index = scan(birds)
    plain = json.loads(json.dumps(inspect(index).to_dict(), allow_nan=False))
    assert plain["fingerprint"] == index.fingerprint
    assert plain["unreadable"] == [{"path": "val/heron/bad.png", "reason": "empty file"}]
    assert plain["exact_duplicates"][0]["across_splits"] is True
    assert plain["sizes"]["width"] == [96, 96.0, 96]


def test_imbalance_few_pictures_and_small_ones_are_warned_of(tmp_path):
    for label, (name, number) in enumerate({"heron": 30, "stork": 4}.items()):
        for at in range(number):
            save(smooth(100 * label + at, (40, 31)), tmp_path / name / f"{at}.png")
    found = inspect(scan(tmp_path))
    assert found.imbalance == 24 / 3
    assert [warning[:40] for warning in found.warnings] == [
        "classes are imbalanced: heron has 24 tra",
        "1 class with fewer than 10 training pict",
        "only 7 validation pictures: one picture ",
        "34 of 34 pictures narrower or lower than",
    ]
    assert "moves the accuracy by 14.3 points" in found.warnings[2]


def test_pictures_alike_in_grey_but_not_in_colour_are_not_near(tmp_path):
    grey = np.asarray(smooth(5).convert("L"))
    for name, channels in (("a", (1.0, 0.2, 0.2)), ("b", (0.2, 0.2, 1.0))):
        coloured = (grey[..., None] * np.array(channels)).astype(np.uint8)
        save(Image.fromarray(coloured), tmp_path / f"{name}.png")
    same_hash = np.zeros(2, dtype=np.uint64)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    assert near_groups(files, ["x", "y"], same_hash) == ([], "")
    shutil.copy(files[0], files[1])
    assert near_groups(files, ["x", "y"], same_hash) == ([[0, 1]], "")
    files[1].unlink()
    assert near_groups(files, ["x", "y"], same_hash) == ([], "")


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    flips=st.lists(
        st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=6)), max_size=12
    ),
    max_bits=st.integers(1, 6),
)
def test_similar_hashes_are_all_found_once(seeds, flips, max_bits):
    near = [seeds[at % len(seeds)] ^ sum(1 << bit for bit in bits) for at, bits in flips]
    hashes = [*seeds, *near]
    expected = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (hashes[i] ^ hashes[j]).bit_count() <= max_bits
    }
    found = list(similar_hashes(np.array(hashes, dtype=np.uint64), max_bits))
    assert sorted(found) == sorted(expected)


def test_exact_groups_keep_positions_in_order():
    assert exact_groups(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
