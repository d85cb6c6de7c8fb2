import io
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_files import touch

from transferkit.data.manifest import read_manifest
from transferkit.data.written_paths import Finder, listed_files

NFD = normalize("NFD", "Bären/Fuß é.PNG")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a/Cat 1.jpg", "a/Cat 1.jpg"),
        ("a\\Cat 1.jpg", "a/Cat 1.jpg"),
        (".\\a\\Cat 1.jpg\r", "a/Cat 1.jpg"),
        ('"a/Cat 1.jpg"', "a/Cat 1.jpg"),
        ("a/Cat%201.jpg", "a/Cat 1.jpg"),
        ("A/CAT 1.JPG", "a/Cat 1.jpg"),
        ("a/Cat 1", "a/Cat 1.jpg"),
        ("a/cat 1", "a/Cat 1.jpg"),
        (normalize("NFC", NFD), NFD),
        (normalize("NFC", NFD).lower().removesuffix(".png"), NFD),
        ("C:\\Users\\me\\set\\a\\Cat 1.jpg", "a/Cat 1.jpg"),
        ("file:///srv/set/a/Cat%201.jpg", "a/Cat 1.jpg"),
        ("a/two", None),
        ("a/TWO.png", None),
        ("a/dog.jpg", None),
        ("/elsewhere/1.jpg", None),
        ("b", None),
        ("", None),
        ("nul\0.jpg", None),
        ("x" * 5000, None),
    ],
)
def test_a_written_path_means_the_only_file_that_it_can_mean(tmp_path, written, meant):
    touch(tmp_path, "a/Cat 1.jpg", NFD, "a/two.png", "a/Two.png", "a/two.jpg", "b/c.png", "1.jpg")
    found = Finder(tmp_path).find(written)
    assert (found and found.as_posix()) == meant


def test_the_very_name_wins_over_names_alike(tmp_path):
    touch(tmp_path, "a.png", "A.png", "a", "a%20.png")
    for name in ("a.png", "A.png", "a", "a%20.png"):
        assert Finder(tmp_path).find(name) == Path(name)


class Standard:
    """A standard input: its bytes are at hand."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def __iter__(self):
        raise AssertionError("read as text")


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\0"])
def test_a_list_of_any_system_is_read(tmp_path, monkeypatch, coding, end):
    if end == "\0" and coding in ("utf-16-le", "utf-16-be"):
        pytest.skip("no system writes it")
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a/Ü 1.png", "b.png")
    text = end.join(["a\\Ü 1.png", "", "b.png", "gone.png", ""])
    found = listed_files(Standard(text.encode(coding)))  # type: ignore[arg-type]
    assert found == [Path("a/Ü 1.png"), Path("b.png"), Path("gone.png")]


def test_lines_of_text_are_read_as_bytes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "b.png")
    assert listed_files(["\ufeffb.png\r\n", "B.png", "c.png\n"]) == [
        *[Path("b.png")] * 2, Path("c.png"),
    ]  # fmt: skip


def table(folder: Path, text: str, coding: str = "utf-8") -> Path:
    (folder / "t.csv").write_bytes(text.encode(coding))
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("column", "cells", "splits"),
    [
        ("is_valid", "False False True True", "train train val val"),
        ("Validation", "0 0 1 1", "train train val val"),
        ("is_train", "1 1 0 0", "train train val val"),
        ("Set", "TRAIN train Val TEST", "train train val test"),
        ("Usage", "Training Training PublicTest PrivateTest", "train train val test"),
        ("Teil", "train train dev test", "train train val test"),
        ("is_test", "no no no yes", "   test"),
    ],
)
def test_a_split_of_another_name_is_read_and_told(tmp_path, column, cells, splits):
    touch(tmp_path, *(f"{n}.png" for n in range(4)))
    rows = [f"{n}.png;{'ab'[n % 2]};{cell}" for n, cell in enumerate(cells.split())]
    found = read_manifest(table(tmp_path, "\r\n".join([f"path;label;{column}", *rows]), "utf-16"))
    assert [entry.split for entry in found.entries] == splits.split(" ")
    assert found.warnings == [f"the split is read from the column {column.lower()}"]


@pytest.mark.parametrize(
    ("header", "cells", "told"),
    [
        ("fold", ("0", "1"), "the column fold looks like a split and is not read (0, 1): "),
        ("is_valid", ("maybe", "1"), "the column is_valid looks like a split and is not read"),
        ("split,is_valid", ("train,0", "val,1"), "the column is_valid looks like a split and"),
        ("a,b", ("train,test", "val,train"), "the column a looks like a split and is not read"),
        ("note", ("train", "garden"), None),
        ("size", ("0", "1"), None),
    ],
)
def test_a_column_like_a_split_that_is_not_read_is_told(tmp_path, header, cells, told):
    touch(tmp_path, "0.png", "1.png")
    rows = [f"{n}.png,{'ab'[n]},{cell}" for n, cell in enumerate(cells)]
    found = read_manifest(table(tmp_path, "\n".join([f"path,label,{header}", *rows])))
    assert found.warnings[0].startswith(told) if told else found.warnings == []
    assert [entry.split for entry in found.entries] == (
        ["train", "val"] if header.startswith("split") else ["", ""]
    )


def test_a_table_that_states_its_separator(tmp_path):
    touch(tmp_path, "Bilder/1.png", "Bilder/2.png")
    text = "sep=;\r\nPath;Label\r\nBilder\\1.png;a,b\r\nbilder\\2;x\r\nBilder\\3.png;x\r\n"
    with pytest.raises(Exception, match=r"t\.csv has 1 problem") as caught:
        read_manifest(table(tmp_path, text))
    assert "line 5: no such file: Bilder\\3.png" in str(caught.value)
    found = read_manifest(table(tmp_path, text[: text.index("Bilder\\3")]))
    assert [(e.path, e.label) for e in found.entries] == [
        ("Bilder/1.png", "a,b"), ("Bilder/2.png", "x"),
    ]  # fmt: skip


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\%\"'“”„", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=12)  # fmt: skip  # noqa: E501


@settings(max_examples=80, deadline=None)
@given(
    name=names.filter(lambda n: n not in (".", "..") and len(n.encode()) < 100),
    form=st.sampled_from(["NFC", "NFD"]),
    written=st.sampled_from(["NFC", "NFD", "backslash", "upper", "bare", "quoted"]),
    coding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_name_is_found_however_it_is_written(
    tmp_path_factory, name, form, written, coding, end
):
    folder = tmp_path_factory.mktemp("names")
    file = Path("sub") / f"{normalize(form, name)}.png"
    touch(folder, str(file))
    text = {
        "backslash": f"sub\\{file.name}",
        "upper": f"SUB/{file.stem}.PNG",
        "bare": f"sub/{file.stem}",
        "quoted": f'"sub/{file.name}"',
    }.get(written) or normalize(written, str(file))
    finder = Finder(folder)
    assert finder.find(text) == file
    data = f"path\tlabel{end}{text}\ta{end}".encode(coding, errors="ignore")
    assume(coding != "cp1252" or data.decode(coding) == f"path\tlabel{end}{text}\ta{end}")
    (folder / "t.csv").write_bytes(data)
    assert [entry.path for entry in read_manifest(folder / "t.csv").entries] == [file.as_posix()]
