"""A table of corrections, applied to a data set when it is scanned."""

import shutil
from pathlib import Path

import pytest

from transferkit.data.corrections import read_corrections
from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.errors import UserError


def corrected(pictures: Path, rows: str, file: Path, **options: object) -> DatasetIndex:
    file.write_text(f"path,label,action\n{rows}", encoding="utf-8")
    return scan(pictures, ScanOptions(corrections=file, **options))  # type: ignore[arg-type]


def labels_of(index: DatasetIndex) -> dict[str, str]:
    return {p: index.classes[k] for p, k in zip(index.paths, index.labels.tolist(), strict=True)}


def test_labels_change_and_pictures_are_left_out(pictures: Path, tmp_path: Path) -> None:
    before = scan(pictures)
    rows = (
        "train/disc/0.png,square,\n"
        "train/disc/1.png,,\n"
        f"{pictures / 'val' / 'disc' / '0.png'},stripes,change\n"  # a whole path
        "train\\square\\0.png,square,leave out\n"  # as Windows writes it
        "train/square/1.png,disc,unsure\n"
        "train/square/2.png,disc,Keep\n"
        "val/square/0.png,square,change\n"  # is so already
    )
    after = corrected(pictures, rows, tmp_path / "c.csv")
    expected = labels_of(before) | {"train/disc/0.png": "square", "val/disc/0.png": "stripes"}
    for path in ("train/disc/1.png", "train/square/0.png"):
        del expected[path]
    assert labels_of(after) == expected
    assert after.classes == before.classes
    assert "c.csv: 2 labels changed, 2 pictures left out" in after.warnings
    assert after.fingerprint != before.fingerprint
    assert after.contents != before.contents


def test_what_changes_nothing_leaves_the_fingerprint(pictures: Path, tmp_path: Path) -> None:
    after = corrected(pictures, "train/disc/0.png,disc,keep\n", tmp_path / "c.csv")
    assert after.fingerprint == scan(pictures).fingerprint
    assert "c.csv: 0 labels changed, 0 pictures left out" in after.warnings


def test_a_table_without_actions_is_enough(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("label;path\nsquare;train/disc/0.png\n;train/disc/1.png\n")
    index = scan(pictures, ScanOptions(corrections=file))
    assert labels_of(index)["train/disc/0.png"] == "square"
    assert "train/disc/1.png" not in index.paths


def test_names_like_formulas_are_read_as_they_were_written(pictures: Path, tmp_path: Path) -> None:
    """`to_csv` puts an apostrophe before them."""
    data = tmp_path / "data"
    shutil.copytree(pictures / "train", data)
    (data / "disc").rename(data / "=disc")
    (data / "square" / "0.png").rename(data / "square" / "-0.png")
    rows = "square/-0.png,'=disc,\n'=disc/0.png,square,\n"
    labels = labels_of(corrected(data, rows, tmp_path / "c.csv"))
    assert (labels["square/-0.png"], labels["=disc/0.png"]) == ("=disc", "square")


def test_every_bad_row_is_told_at_once(pictures: Path, tmp_path: Path) -> None:
    rows = (
        "train/disc/99.png,square,\n"
        "train/disc/0.png,sqare,\n"
        "train/disc/1.png,square,\ntrain/disc/1.png,stripes,\n"
        "train/disc/2.png,square,\ntrain/disc/2.png,square,\n"  # twice the same is no problem
    )
    with pytest.raises(UserError) as refused:
        corrected(pictures, rows, tmp_path / "c.csv")
    assert str(refused.value).splitlines() == [
        f"{tmp_path / 'c.csv'} has 3 problems",
        "       line 2: no such picture: train/disc/99.png",
        "       lines 4 and 5: two corrections for train/disc/1.png",
        "       line 3: no such class: sqare (did you mean square?)",
        f"       classes: disc, square, stripes; paths are relative to {pictures}",
    ]


def test_rows_that_say_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("path,label,action\n,a,\nx.png,a,drop\nx.png,,change\n")
    with pytest.raises(UserError) as refused:
        read_corrections(file)
    assert refused.value.where.splitlines() == [
        "line 2: no path",
        "line 3: unknown action drop: keep, change, leave out, unsure",
        "line 4: no label to change to",
    ]


@pytest.mark.parametrize("text", ["", "path\nx.png\n", None])
def test_what_is_no_table_of_corrections_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "c.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_corrections(file)
    assert "a table of corrections is a CSV file with the columns path,label" in str(refused.value)
    assert text is not None or "--corrections" in refused.value.what


def test_classes_that_are_left_out_may_be_named(pictures: Path, tmp_path: Path) -> None:
    rows = "train/disc/0.png,square,\ntrain/square/0.png,disc,\n"
    index = corrected(pictures, rows, tmp_path / "c.csv", exclude=("disc",))
    assert "train/square/0.png" not in index.paths  # it is of the class that is left out
    assert index.classes == ("square", "stripes")


def test_corrections_come_before_the_draw(pictures: Path, tmp_path: Path) -> None:
    """So that validation has its share of the classes as they are corrected."""
    data = pictures / "train"
    rows = "".join(f"disc/{n}.png,square,\n" for n in range(5))
    index = corrected(data, rows, tmp_path / "c.csv")
    assert index.counts["disc"] == {"train": 1, "val": 1, "test": 0}
    assert index.counts["square"] == {"train": 9, "val": 2, "test": 0}
