"""Names that differ in letter case alone, and very many classes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.checks import case_warnings
from transferkit.data.index import ScanOptions, scan
from transferkit.data.inspect import inspect
from transferkit.data.listing import Entry, Listing
from transferkit.errors import UserError

SHADES = iter(range(10**6))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = next(SHADES)
    noise = np.random.default_rng(shade).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Cat/ and cat/, and among the dogs a.PNG and a.png."""
    for name in ("Cat/1.png", "Cat/2.png", "cat/1.png", "cat/3.png"):
        picture(tmp_path / name)
    for name in ("dog/a.PNG", "dog/a.png", "dog/deep/a.png", "dog/b.png"):
        picture(tmp_path / name)
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system does not tell letter case apart")
    return tmp_path


def test_classes_and_pictures_alike_but_for_case_are_kept_apart_and_told_of(tree: Path) -> None:
    index = scan(tree)
    assert set(index.classes) == {"Cat", "cat", "dog"}
    assert len(index) == 8
    assert index.warnings == (
        "1 class called like another but for letter case (first: Cat and cat): they are trained as "
        "different classes; if they mean the same, give them one name",
        "1 picture called like another but for letter case (first: dog/a.PNG and dog/a.png): a "
        "copy on Windows or macOS would keep one of each",
    )
    assert index.counts["Cat"] == {"train": 1, "val": 1, "test": 0}


def test_folders_that_become_one_class_are_told_of(tmp_path: Path) -> None:
    names = ("ant", "ant ", "caf\u00e9", "cafe\u0301", "dog")
    for name in names:
        for number in range(2):
            picture(tmp_path / name / f"{number}.png")
    if len(os.listdir(tmp_path)) < len(names):
        pytest.skip("this file system does not tell such names apart")
    index = scan(tmp_path)
    assert index.classes == ("ant", "caf\u00e9", "dog")
    (told,) = (warning for warning in index.warnings if "one class" in warning)
    assert told.startswith("2 class folders called like another but for blanks or how letters are")
    assert "(first: 'ant' and 'ant ')" in told
    renamed = tmp_path / "dog"
    renamed.rename(tmp_path / " ")
    with pytest.raises(UserError, match="1 class folder whose name is blank") as refused:
        scan(tmp_path)
    assert refused.value.where == "' '"


def test_labels_of_a_manifest_are_compared_too(tree: Path) -> None:
    rows = "".join(f"dog/{name},{label}\n" for name, label in (("a.png", "x"), ("b.png", "X")))
    more = "Cat/1.png,x\nCat/2.png,X\n"
    (tree / "table.csv").write_text(f"path,label\n{rows}{more}")
    index = scan(None, ScanOptions(manifest=tree / "table.csv"))
    assert [warning.split(":")[0] for warning in index.warnings] == [
        "1 class called like another but for letter case (first"
    ]


def test_nothing_is_said_of_other_names(tmp_path: Path) -> None:
    listing = Listing(tmp_path, classes={"a": "a", "b": "b"})
    listing.entries = [Entry("a/1.png", "a", ""), Entry("b/1.png", "b", "")]
    assert case_warnings(listing) == []


def test_the_names_of_other_languages_are_folded_as_unicode_has_it(tmp_path: Path) -> None:
    listing = Listing(tmp_path, classes={"STRASSE": "", "Straße": "", "Éclair": "", "éclair": ""})
    assert case_warnings(listing)[0].startswith("2 classes called like another")


def test_counts_of_many_classes_are_those_of_a_loop(tree: Path) -> None:
    index = scan(tree)
    assert index.counts == {
        name: {
            split: sum(
                1
                for label, s in zip(index.labels, index.splits, strict=True)
                if index.classes[label] == name and s == split
            )
            for split in ("train", "val", "test")
        }
        for name in index.classes
    }


@pytest.mark.slow
def test_a_hundred_thousand_classes_are_inspected(tmp_path: Path) -> None:
    """Two links to pictures each; anything that looks at all pairs of classes takes hours."""
    for number in range(4):
        picture(tmp_path / "pictures" / f"{number}.png")
    sources = [tmp_path / "pictures" / f"{number}.png" for number in range(4)]
    for number in range(100_000):
        folder = tmp_path / "data" / f"c{number}"
        folder.mkdir(parents=True)
        for copy in range(2):
            os.link(sources[(number + copy) % 4], folder / f"{copy}.png")
    found = inspect(scan(tmp_path / "data", ScanOptions(use="look")))
    assert found.pictures == 200_000
    assert len(found.counts) == 100_000
    assert {count["train"] for count in found.counts.values()} == {2}
