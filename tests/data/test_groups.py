"""Groups of pictures: what makes one, and that no split tears it apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.data.groups import column_of, group_pictures, grouped, propose_groups
from transferkit.data.index import ScanOptions, scan
from transferkit.data.listing import Entry
from transferkit.data.splits import draw_grouped, folds_of
from transferkit.errors import UserError

PATHS = ("a/s1/x1_0.png", "a/s1/x1_1.png", "a/s2/x2_0.png", "b/s1/x3_0.png", "b/x4.png")
ENTRIES = [Entry(path, path[0], "", group=f"g{n // 2}") for n, path in enumerate(PATHS)]
DIGESTS = tuple("vwxyz")


def numbers(by: str, digests: tuple[str, ...] = DIGESTS) -> list[int]:
    """Return groups by their first picture."""
    found = group_pictures(by, ENTRIES, digests, Path("/"))
    assert found is not None
    return [found.numbers.tolist().index(number) for number in found.numbers]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("folder", [0, 0, 2, 0, 4]),  # what lies in its class's own folder stands alone
        ("folder:1", [0, 0, 0, 3, 3]),
        ("folder:2", [0, 0, 2, 0, 4]),
        (r"(x\d)", [0, 0, 2, 3, 4]),
        (r"_(\d)", [0, 1, 0, 0, 4]),
        ("visit", [0, 0, 2, 2, 4]),
    ],
)
def test_what_makes_a_group(by: str, expected: list[int]) -> None:
    assert numbers(by) == expected


def test_copies_of_one_file_join_their_groups() -> None:
    assert numbers("folder", ("v", "w", "x", "y", "x")) == [0, 0, 2, 0, 2]
    assert numbers(r"(x\d)", ("v", "w", "v", "y", "z")) == [0, 0, 0, 3, 4]


def test_only_other_words_are_columns() -> None:
    others = ("", "folder", "folder:2", "time:30s", "similar", r"(x\d)")
    assert [column_of(by) for by in (*others, "Visit")] == [""] * 6 + ["visit"]


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ("(", "is no pattern"),
        ("(a)(b)", "has 2 parts in parentheses"),
        ("(nothing)", "matches no file name"),
        ("(.)", "all 5 pictures are in one group"),
        ("time:soon", "must be a time"),
        ("time:30s", "no picture tells when it was taken"),
    ],
)
def test_what_makes_no_groups_is_told(by: str, told: str, tmp_path: Path) -> None:
    entries = [Entry(f"{n}/p.png", "a", "") for n in range(5)]
    with pytest.raises(UserError, match=told):
        group_pictures(by, entries, DIGESTS, tmp_path)


def test_bursts_are_what_is_taken_within_a_time_of_another(tmp_path: Path) -> None:
    taken = {"a/1": "10:00:00", "a/2": "10:00:25", "a/3": "10:00:50", "a/4": "10:01:30"}
    taken |= {"b/1": "10:00:01", "b/2": ""}
    entries = []
    for path, time in taken.items():
        file = tmp_path / f"{path}.jpg"
        file.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        if time:
            exif.get_ifd(0x8769)[36867] = f"2024:05:01 {time}"
        Image.new("RGB", (8, 8)).save(file, exif=exif)
        entries.append(Entry(f"{path}.jpg", "c", ""))
    found = group_pictures("time:30s", entries, tuple("abcdef"), tmp_path)
    assert found is not None
    first = [found.numbers.tolist().index(number) for number in found.numbers]
    assert first == [0, 0, 0, 3, 4, 5]  # a chain of short gaps; another folder; no time
    assert "4 groups, the largest of 3 pictures" in found.note
    assert "1 picture without one stand alone" in found.note


def test_the_note_names_the_largest_group() -> None:
    note = grouped(["a", "b", "b", ""], tuple("wxyz"), "by").note
    assert note == "by: 3 groups, the largest of 2 pictures, b; 1 picture without one stand alone"


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles_a_drawn_split(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 30, 300)
    labels = [f"c{group % 3}" for group in groups]
    drawn = np.array(draw_grouped(labels, groups, 0.2, seed))
    assert not set(groups[drawn]) & set(groups[~drawn])
    assert 0.1 < drawn.mean() < 0.3
    assert set(np.array(labels)[~drawn]) == {"c0", "c1", "c2"}


def test_a_class_in_one_group_stays_in_training() -> None:
    groups = np.array([0] * 10 + [1] * 10 + [2] * 3)
    labels = ["a"] * 20 + ["b"] * 3
    for seed in range(10):
        drawn = np.array(draw_grouped(labels, groups, 0.3, seed))
        assert not drawn[20:].any()
        assert drawn.any()


@pytest.mark.parametrize("groups", [np.arange(95), np.arange(95) // 4])
def test_folds_hold_whole_groups_and_every_class_in_its_share(groups: np.ndarray) -> None:
    labels = np.array([0] * 60 + [1] * 32 + [2] * 3)
    fold = folds_of(labels, groups, 5, 0)
    assert np.bincount(fold).min() >= 15
    for group in np.unique(groups):
        assert len(set(fold[groups == group])) == 1
    for n in range(5):
        assert abs((fold[labels == 1] == n).sum() - 6.4) <= 4
    assert (fold == folds_of(labels, groups, 5, 0)).all()
    assert (fold != folds_of(labels, groups, 5, 1)).any()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"IMG_{n // 4:04d}_{n % 4}.jpg" for n in range(40)], r"^(.+)[-_ ]"),
        ([f"cam{n // 4}-day_{n % 4}x.jpg" for n in range(40)], r"^(.+)[-_ ]"),
        ([f"{'abcd'[n % 4]}_{100 + n // 4}.jpg" for n in range(40)], r"(\d+)\D*$"),
        ([f"{n}.jpg" for n in range(40)], ""),
        ([f"photo_{n}.jpg" for n in range(40)], ""),  # one group of all
        ([f"{n % 20}.jpg" for n in range(40)], ""),  # the same names in both classes
    ],
)
def test_groups_are_proposed_where_names_share_a_part(names: list[str], expected: str) -> None:
    labels = ["a" if n < 20 else "b" for n in range(40)]
    paths = [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]
    found = propose_groups(paths, labels, [str(n) for n in range(40)], Path("/"))
    assert [way.by for way in found][:1] == ([expected] if expected else [])
    if expected:
        assert "40 pictures are named like others, in 10 groups of up to 4" in found[0].evidence


def draw_sites(root: Path, split: str = "") -> Path:
    """Draw two classes at six sites of four pictures each."""
    for n in range(48):
        file = root / split / "ab"[n % 2] / f"site{n // 8}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (n, 5 * n, 200 - n)).save(file)
    return root


def test_a_scan_draws_by_groups(tmp_path: Path) -> None:
    data = draw_sites(tmp_path)
    plain = scan(data)
    sites = [path.split("/")[1] for path in plain.paths]
    assert len({s for s, split in zip(sites, plain.splits, strict=True) if split == "val"}) > 2
    index = scan(data, ScanOptions(group_by="folder"))
    held = {s for s, split in zip(sites, index.splits, strict=True) if split == "val"}
    kept = {s for s, split in zip(sites, index.splits, strict=True) if split == "train"}
    assert held
    assert not held & kept
    assert "--group-by folder: 6 groups, the largest of 8 pictures, site0" in index.warnings
    assert index.groups is not None
    assert len(set(index.groups)) == 6


def test_groups_that_a_given_split_tears_apart_are_told(tmp_path: Path) -> None:
    draw_sites(tmp_path, "train")
    draw_sites(tmp_path, "val")
    index = scan(tmp_path, ScanOptions(group_by="folder"))
    assert any("6 groups in more than one split" in text for text in index.warnings)


def test_a_column_of_a_table(tmp_path: Path) -> None:
    data = draw_sites(tmp_path)
    files = sorted(data.rglob("*.png"))
    rows = [f"{f.relative_to(data)},{f.parts[-3]},{int(f.stem) % 7}" for f in files]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,label,Visit", *rows]))
    index = scan(None, ScanOptions(manifest=table, group_by="visit"))
    visits = [int(Path(path).stem) % 7 for path in index.paths]
    assert index.groups is not None
    assert len(set(zip(visits, index.groups.tolist(), strict=True))) == 7
    with pytest.raises(UserError, match=r"no table with such a column \(did you mean visit"):
        scan(None, ScanOptions(manifest=table, group_by="visits"))
    with pytest.raises(UserError, match="no table with such a column"):
        scan(data, ScanOptions(group_by="visit"))
    for other in ("visit", "(zzz)", "time:30s"):  # of other pictures than those that were grouped
        assert scan(data, ScanOptions(group_by=other, use="measure")).groups is None
