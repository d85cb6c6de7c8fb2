import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.data.splits import draw_validation
from transferkit.errors import UserError


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def birds(root: Path, per_class: int = 5, classes: tuple[str, ...] = ("heron", "stork")) -> Path:
    for label, name in enumerate(classes):
        for number in range(per_class):
            # Each folder has its own pictures, train and val too.
            seed = [label, number, len(root.name)]
            picture(root / name / f"{number}.png", seed=hash(tuple(seed)) % 2**32)
    return root


def split_of(index: DatasetIndex) -> dict[str, str]:
    return dict(zip(index.paths, index.splits.tolist(), strict=True))


def failure(data: Path | None, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        scan(data, ScanOptions(**options))
    return caught.value


def test_folders_with_splits(tmp_path):
    birds(tmp_path / "Train")
    birds(tmp_path / "validation", 2)
    birds(tmp_path / "test", 1)
    picture(tmp_path / "Train/stork/deep/er/Z.PNG", 99, (20, 30))
    index = scan(tmp_path)
    assert index.root == tmp_path
    assert index.classes == ("heron", "stork")
    assert {name: len(index.of_split(name)) for name in ("train", "val", "test")} == {
        "train": 11,
        "val": 4,
        "test": 2,
    }
    position = index.paths.index("Train/stork/deep/er/Z.PNG")
    assert index.labels[position] == 1
    assert index.sizes[position].tolist() == [20, 30]
    assert index.file(position) == tmp_path / "Train/stork/deep/er/Z.PNG"
    assert index.warnings == index.unreadable == ()
    assert len(index) == len(index.digests) == len(index.dhashes) == 17
    assert (index.labels.dtype, index.dhashes.dtype) == (np.int64, np.uint64)


def test_class_folders_are_split_by_the_seed(tmp_path):
    birds(tmp_path, 20)
    index = scan(tmp_path, ScanOptions(val_fraction=0.25, seed=3))
    for label in (0, 1):
        assert np.sum(index.splits[index.labels == label] == "val") == 5
    assert split_of(scan(tmp_path, ScanOptions(val_fraction=0.25, seed=3))) == split_of(index)
    assert split_of(scan(tmp_path, ScanOptions(val_fraction=0.25, seed=4))) != split_of(index)


def test_train_without_val_gives_some_of_it_and_says_so(tmp_path):
    birds(tmp_path / "train", 10)
    birds(tmp_path / "test", 2)
    index = scan(tmp_path)
    assert [len(index.of_split(name)) for name in ("train", "val", "test")] == [16, 4, 4]
    assert index.warnings == (
        "no validation part found: 20% of each class is taken from training for it",
    )


def test_a_class_may_be_called_train(tmp_path):
    birds(tmp_path, classes=("bus", "train"))
    assert scan(tmp_path).classes == ("bus", "train")


def test_folders_beside_train_and_loose_pictures_are_mentioned(tmp_path):
    birds(tmp_path / "train")
    birds(tmp_path / "val", 2)
    picture(tmp_path / "unlabeled" / "a.png", 1)
    picture(tmp_path / "spare" / "a.png", 1)
    picture(tmp_path / "train" / "loose.png", 1)
    (tmp_path / "train/heron/notes.txt").write_text("x")
    assert scan(tmp_path).warnings == (
        "ignored, because it lies beside train/: spare/",
        "1 picture outside of any class folder (first: train/loose.png) left out: "
        "move them into the folder of their class",
        "1 file that is no picture left out: 1 .txt",
    )


def test_the_fingerprint_follows_content_not_place(tmp_path):
    birds(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = scan(tmp_path / "a").fingerprint
    assert scan(tmp_path / "b").fingerprint == first
    assert scan(tmp_path / "b", ScanOptions(val_fraction=0.5)).fingerprint != first
    picture(tmp_path / "b/heron/0.png", 1234)
    assert scan(tmp_path / "b").fingerprint != first
    shutil.copy(tmp_path / "a/heron/0.png", tmp_path / "b/heron/0.png")
    assert scan(tmp_path / "b").fingerprint == first
    (tmp_path / "b/heron/0.png").rename(tmp_path / "b/heron/00.png")
    assert scan(tmp_path / "b").fingerprint != first
    (tmp_path / "a/heron").rename(tmp_path / "a/crane")
    assert scan(tmp_path / "a").fingerprint != first


def test_unreadable_pictures_are_left_out_and_counted(tmp_path):
    birds(tmp_path)
    (tmp_path / "heron/0.png").write_bytes(b"")
    (tmp_path / "heron/1.png").write_bytes((tmp_path / "heron/1.png").read_bytes()[:60])
    (tmp_path / "stork/0.jxl").write_bytes(b"x")
    os.symlink("gone", tmp_path / "stork/link.png")
    index = scan(tmp_path)
    assert [(bad.path, bad.reason) for bad in index.unreadable] == [
        ("heron/0.png", "empty file"),
        ("heron/1.png", "truncated"),
        ("stork/0.jxl", "JPEG XL (not supported)"),
        ("stork/link.png", "broken link"),
    ]
    assert len(index) == 8
    assert index.warnings == (
        "4 of 12 pictures cannot be read and are left out: 1 empty file (heron/0.png), "
        "1 truncated (heron/1.png), 1 JPEG XL (not supported), 1 broken link (stork/link.png)",
    )
    error = failure(tmp_path, strict=True)
    assert error.what == f"4 unreadable pictures in {tmp_path}"
    assert error.where.splitlines()[1] == "heron/1.png: truncated"
    assert error.exit_code == 1


def test_a_name_that_is_not_text_makes_a_picture_unreadable(tmp_path):
    birds(tmp_path)
    picture(tmp_path / os.fsdecode(b"heron/\xff.png"), 77)
    found = [(bad.path, bad.reason) for bad in scan(tmp_path).unreadable]
    assert found == [("heron/\\udcff.png", "the name is not valid UTF-8")]


def test_progress_counts_every_listed_picture(tmp_path):
    birds(tmp_path)
    seen: list[tuple[int, int]] = []
    scan(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 10) for number in range(1, 11)]


def test_excluded_classes_are_left_out(tmp_path):
    birds(tmp_path, classes=("heron", "ibis", "stork"))
    assert scan(tmp_path, ScanOptions(exclude=("ibis",))).classes == ("heron", "stork")
    error = failure(tmp_path, exclude=("ibs",))
    assert error.what == "--exclude names no class: ibs (did you mean ibis?)"
    assert error.exit_code == 2


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_fraction_is_a_wrong_command(tmp_path, fraction):
    assert failure(birds(tmp_path), val_fraction=fraction).exit_code == 2


def test_paths_that_are_no_folder(tmp_path):
    picture(tmp_path / "a.png", 0)
    (tmp_path / "t.csv").write_text("path,label\n")
    assert failure(tmp_path / "a.png").what == f"{tmp_path}/a.png is a file, not a folder"
    assert failure(tmp_path / "t.csv").remedy == f"give it as --manifest {tmp_path}/t.csv"
    error = failure(tmp_path / "no" / "such")
    assert error.what == f"{tmp_path}/no/such does not exist"
    assert error.where == f"the path exists up to {tmp_path}"
    assert error.exit_code == 2
    assert failure(None).exit_code == 2


def test_folders_without_pictures_or_classes(tmp_path):
    assert failure(tmp_path).what == f"{tmp_path} is empty"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/n.txt").write_text("x")
    error = failure(tmp_path)
    assert error.what == f"{tmp_path} holds no pictures"
    assert error.where == "2 class folders, 1 file found, none of them a picture: 1 .txt"
    picture(tmp_path / "flat/1.png", 0)
    assert (
        failure(tmp_path / "flat").what == f"{tmp_path}/flat holds 1 picture but no class folders"
    )


def test_one_class_only(tmp_path):
    birds(tmp_path / "one", classes=("heron",))
    assert failure(tmp_path / "one").what == f"{tmp_path}/one has only one class: heron"
    birds(tmp_path / "two" / "images")
    remedy = failure(tmp_path / "two").remedy
    assert remedy == f"if its 2 subfolders are the classes, give {tmp_path}/two/images instead"


def test_a_class_without_a_readable_picture(tmp_path):
    birds(tmp_path)
    for number in range(3):
        (tmp_path / "heron" / f"{number}.png").rename(tmp_path / "heron" / f"{number}.JXL")
    for number in (3, 4):
        (tmp_path / "heron" / f"{number}.png").write_bytes(b"")
    (tmp_path / "heron/n.txt").write_text("x")
    assert str(failure(tmp_path)) == (
        f"{tmp_path}/heron has no readable picture\n"
        "       6 files found: 3 JPEG XL (not supported), 2 empty file (first: heron/3.png), "
        "1 .txt\n"
        "       convert them to JPEG or PNG, or leave the class out with --exclude heron"
    )
    (tmp_path / "a crane").mkdir()
    error = failure(tmp_path)
    assert error.what == f"2 classes of {tmp_path} have no readable picture"
    assert error.where.splitlines()[0] == "a crane: no files found"
    assert error.remedy.endswith("leave the classes out with --exclude 'a crane' --exclude heron")


def test_classes_with_one_distinct_picture_are_named_together(tmp_path):
    birds(tmp_path)
    picture(tmp_path / "ibis/1.png", 50)
    error = failure(tmp_path)
    assert error.what == ("class ibis cannot be in both training and validation: it has 1 picture")
    for number in range(3):
        picture(tmp_path / "tern" / f"{number}.png", 60)
    assert failure(tmp_path).where.splitlines() == [
        "ibis: 1 picture",
        "tern: 3 copies of 1 picture",
    ]


def test_splits_with_different_class_names(tmp_path):
    birds(tmp_path / "train")
    birds(tmp_path / "val", 2, ("herons", "stork"))
    error = failure(tmp_path)
    assert error.what == "1 class not in train"
    assert error.where == "val: herons (did you mean heron?)\ntrain has: heron, stork"
    shutil.rmtree(tmp_path / "val/herons")
    assert scan(tmp_path).warnings == (
        "1 class of train without a readable picture in val (heron): nothing can be measured for "
        "them there",
    )
    (tmp_path / "val/stork/0.png").write_bytes(b"")
    (tmp_path / "val/stork/1.png").write_bytes(b"")
    assert failure(tmp_path).what == f"{tmp_path} has no readable picture in val"
    shutil.move(tmp_path / "train", tmp_path / "testing")
    assert failure(tmp_path).what == f"{tmp_path} has val and test but no train folder"


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "val", "valid"):
        birds(tmp_path / name)
    assert failure(tmp_path).what == f"{tmp_path} holds val/ and valid/, which mean the same"


@settings(max_examples=200)
@given(
    contents=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(0, 30), min_size=1, max_size=25), min_size=1
    ),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
    order=st.randoms(use_true_random=False),
)
def test_drawn_validation_keeps_its_promises(contents, fraction, seed, order):
    rows = [(label, str(digest)) for label, digests in contents.items() for digest in digests]
    labels, digests = [label for label, _ in rows], [digest for _, digest in rows]
    try:
        drawn = draw_validation(labels, digests, fraction, seed)
    except UserError:
        shared = {d for d in digests if len({label for label, e in rows if e == d}) > 1}
        assert any(len(set(map(str, own))) < 2 or set(map(str, own)) <= shared
                   for own in contents.values())  # fmt: skip
        return
    side = {}
    for digest, in_val in zip(digests, drawn, strict=True):
        assert side.setdefault(digest, in_val) == in_val
    for label in contents:
        sides = {in_val for own, in_val in zip(labels, drawn, strict=True) if own == label}
        assert sides == {True, False}
    order.shuffle(rows)
    again = draw_validation([label for label, _ in rows], [d for _, d in rows], fraction, seed)
    assert {d: v for (_, d), v in zip(rows, again, strict=True)} == side


@settings(max_examples=50)
@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 100))
def test_distinct_pictures_are_split_at_the_rounded_fraction(number, fraction, seed):
    drawn = draw_validation(["a"] * number, [str(n) for n in range(number)], fraction, seed)
    assert sum(drawn) == min(max(round(number * fraction), 1), number - 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
        .map(lambda name: f"a{name}")
        .filter(lambda name: len(name.encode()) < 200),
        min_size=4,
        max_size=6,
        unique=True,
    )
)
def test_any_file_name_can_be_indexed(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(names):
        picture(root / "x" / f"{name}.png", number)
        picture(root / "y" / f"{name}.png", 100 + number)
    index = scan(root)
    assert set(index.paths) == {f"{folder}/{name}.png" for folder in "xy" for name in names}
    assert all(index.file(position).is_file() for position in range(len(index)))
