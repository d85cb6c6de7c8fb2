import csv
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferkit.data.index import ScanOptions, scan
from transferkit.data.manifest import read_manifest
from transferkit.errors import UserError


def pictures(folder: Path, *names: str) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), shade).save(folder / name)


def manifest(folder: Path, text: str) -> Path:
    path = folder / "pictures.csv"
    path.write_bytes(text.encode())
    return path


def failure(path: Path, root: Path | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        read_manifest(path, root)
    return caught.value


def test_a_manifest_with_splits(tmp_path):
    pictures(tmp_path, "1.png", "2.png", "sub/3.png", "4.png")
    text = "\ufeffSplit,path, Label ,note\ntrain,1.png,a,x\nTRAIN,2.png,b,\nvalid,sub/3.png,a\n"
    path = manifest(tmp_path, f'{text}\nval,{tmp_path}/4.png,"b"\n')
    index = scan(None, ScanOptions(manifest=path))
    assert index.root == tmp_path
    assert index.paths == ("1.png", "2.png", "4.png", "sub/3.png")
    assert index.labels.tolist() == [0, 1, 1, 0]
    assert index.splits.tolist() == ["train", "train", "val", "val"]
    assert index.warnings == ()


@pytest.mark.parametrize("separator", [";", "\t", ","])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_manifest_without_splits_is_split_by_the_seed(tmp_path, separator, newline):
    names = [f"{number}.png" for number in range(10)]
    pictures(tmp_path, *names)
    rows = [f"{name}{separator}{'ab'[number % 2]}" for number, name in enumerate(names)]
    path = manifest(tmp_path, newline.join([f"path{separator}label", *rows]))
    index = scan(None, ScanOptions(manifest=path))
    assert [len(index.of_split(split)) for split in ("train", "val")] == [8, 2]
    assert index.warnings == ()


def test_paths_start_from_data_where_it_is_given(tmp_path):
    pictures(tmp_path / "data", "1.png", "2.png")
    pictures(tmp_path, "outside.png", "3.png")
    path = manifest(
        tmp_path, "path,label,split\n1.png,a,train\n2.png,b,train\n../outside.png,a,val\n"
    )
    with pytest.raises(UserError) as caught:
        scan(tmp_path / "data", ScanOptions(manifest=path))
    outside = f"line 4: outside of {tmp_path}/data (--allow-outside): ../outside.png"
    assert caught.value.where == outside
    index = scan(tmp_path / "data", ScanOptions(manifest=path, allow_outside=True))
    assert index.root == tmp_path / "data"
    assert set(index.paths) == {"1.png", "2.png", f"{tmp_path}/outside.png"}
    assert all(index.file(position).is_file() for position in range(3))
    assert failure(path).where.startswith("line 2: no such file: 1.png")


def test_every_problem_is_reported_with_its_line(tmp_path):
    pictures(tmp_path, "1.png", "2.png", "3.png")
    path = manifest(
        tmp_path,
        "path,label,split\n1.png,a,train\n1.png,b,train\n2.png,,val\n,,\ngone.png,a,val\n"
        "2.png,a,trian\n3.png,a,train\n3.png,a,val\n3.png,a\n",
    )
    error = failure(path)
    assert error.what == f"{path} has 6 problems"
    assert error.where.splitlines() == [
        "lines 2 and 3: two labels for 1.png: a and b",
        "line 4: no label",
        "line 6: no such file: gone.png",
        "line 7: unknown split trian (did you mean train?)",
        "lines 8 and 9: two splits for 3.png: train and val",
        "lines 8 and 10: two splits for 3.png: train and none",
    ]
    assert error.exit_code == 1


def test_some_rows_without_a_split_and_no_training_rows(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    path = manifest(tmp_path, "path,label,split\n1.png,a,train\n2.png,b,\n")
    assert failure(path).where == "line 3: no split, though others have one (1 such rows)"
    path = manifest(tmp_path, "path,label,split\n1.png,a,val\n2.png,b,val\n")
    assert failure(path).where == "no row has the split train (found: val)"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("path,label\n", "lists no pictures"),
        ("file,label\n1.png,a\n", "has no column path"),
        ("paths,labels\n1.png,a\n", "has no column path and label (did you mean paths?)"),
        ("path,label,label\n", "has the column label twice"),
        ('path,label\n"1.png,a\n', "is not a CSV table"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, what):
    path = manifest(tmp_path, text)
    assert failure(path).what.startswith(f"{path} {what}")


def test_a_manifest_that_cannot_be_opened(tmp_path):
    assert failure(tmp_path / "gone.csv").exit_code == 2
    assert failure(tmp_path).what == f"--manifest {tmp_path} is a folder"
    for more in (b"\xe4 \xc3\xa4", b"\x81", b"\xe4\0"):  # in part UTF-8; no character; binary
        (tmp_path / "odd.csv").write_bytes(b"path,label\n1.png," + more + b"\n")
        assert failure(tmp_path / "odd.csv").what == f"{tmp_path}/odd.csv is not UTF-8 text"


def test_a_manifest_of_an_older_excel_is_read_as_windows_1252(tmp_path):
    pictures(tmp_path, "Bären/Fuß 1.png", "2.png")
    text = "path;label\r\nBären\\Fuß 1.png;größer 5 €\r\n2.png;a\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    listing = read_manifest(tmp_path / "t.csv")
    assert [(e.path, e.label) for e in listing.entries] == [
        ("Bären/Fuß 1.png", "größer 5 €"), ("2.png", "a"),
    ]  # fmt: skip
    assert listing.warnings == [
        f"{tmp_path}/t.csv is not UTF-8 and was read as Windows-1252 (Bären\\Fuß); if that is "
        "wrong, save it as UTF-8"
    ]


def test_a_repeated_row_is_counted(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    path = manifest(tmp_path, "path,label\n1.png,a\n1.png,a\n2.png,b\n./2.png,b\n")
    listing = read_manifest(path)
    assert [entry.path for entry in listing.entries] == ["1.png", "2.png"]
    assert listing.warnings == ["2 rows of the manifest repeat an earlier row"]


def test_a_class_of_the_manifest_without_readable_pictures(tmp_path):
    pictures(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "3.png").write_bytes(b"")
    path = manifest(tmp_path, "path,label\n1.png,a\n2.png,a\n3.png,b\n")
    with pytest.raises(UserError, match="class b has no readable picture"):
        scan(None, ScanOptions(manifest=path))


labels = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(st.lists(labels, min_size=1, max_size=8))
def test_any_label_survives_the_manifest(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("labels")
    files = [f"{number}.png" for number in range(len(names))]
    for name in files:
        (folder / name).touch()
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("path", "label"), *zip(files, names, strict=True)])
    listing = read_manifest(folder / "m.csv")
    assert [entry.label for entry in listing.entries] == [normalize("NFC", name) for name in names]


@settings(max_examples=100, deadline=None)
@given(st.text() | st.binary())
def test_any_text_is_read_or_refused_with_a_message(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    data = (
        content if isinstance(content, bytes) else f"path,label\n{content}".encode(errors="replace")
    )
    (folder / "m.csv").write_bytes(data)
    error = failure(folder / "m.csv")
    assert error.what
    assert str(error).replace("\n", "").isprintable()
