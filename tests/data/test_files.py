import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_files import touch
from PIL import Image

from transferkit.data.files import walk
from transferkit.data.named_pictures import list_images
from transferkit.data.names import class_name, did_you_mean, natural_sorted, shown
from transferkit.errors import UserError


def test_walk_sorts_files_by_kind_and_skips_what_is_hidden(tmp_path):
    touch(tmp_path, "b/10.JPG", "b/9.jpg", "a.Png", "n.txt", "x.jxl", "README", ".DS_Store")
    touch(tmp_path, "._a.png", ".git/a.png", "__MACOSX/a.png", "Thumbs.db")
    found = walk(tmp_path)
    assert found.images == ["a.Png", "b/9.jpg", "b/10.JPG"]
    assert found.unsupported == {"x.jxl": "JPEG XL"}
    assert found.others == {".txt": 1, "": 1}
    assert found.folders == ["b"]


def test_links_to_folders_are_followed_once_and_never_upwards(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "data/class/2.png", "data/other/3.png")
    inside = tmp_path / "data" / "class"
    os.symlink(tmp_path / "elsewhere", inside / "linked")
    os.symlink(tmp_path / "elsewhere", inside / "linked_too")
    os.symlink("..", inside / "up")
    os.symlink(".", inside / "self")
    os.symlink("circle", inside / "circle")
    found = walk(inside)
    assert found.images == ["2.png", "linked/1.png"]
    assert found.repeated == ["linked_too", "self", "up"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    touch(tmp_path, "closed/1.png")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        walk(tmp_path)


def test_natural_order():
    assert natural_sorted(["img10", "Img9", "img010", "a", "B", "2"]) == [
        "2", "a", "B", "Img9", "img010", "img10",
    ]  # fmt: skip


@given(st.lists(st.text()))
def test_natural_order_is_total_and_independent_of_the_input_order(names):
    assert natural_sorted(names) == natural_sorted(reversed(names))
    assert sorted(natural_sorted(names)) == sorted(names)


@given(st.text(st.characters()))
def test_shown_names_stay_on_one_printable_line(name):
    assert shown(name).isprintable()
    shown(name).encode()


def test_class_names_are_compared_in_one_unicode_form():
    assert class_name("cafe\u0301 ") == class_name("caf\u00e9")


def test_the_nearest_name_is_suggested():
    assert did_you_mean("Herons", ["stork", "heron"]) == " (did you mean heron?)"
    assert did_you_mean("zebra", ["stork", "heron"]) == ""


SYSTEMS = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "RECYCLER"),
    *(
        ".ipynb_checkpoints",
        "__MACOSX",
        "@Recycle",
        ".@__thumb",
        "@__thumb",
        "#snapshot",
        ".Trash-1000",
    ),
    *("~snapshot", "@tmp", "@Recently-Snapshot", "FOUND.000", "LOST.DIR", "x.lrdata", "@sharebin"),
    *("Network Trash Folder", "$Extend", "RECYCLED", "Recycle.Bin", "#SharedSnapshot"),
)
USERS = (
    "#cat",
    "@home",
    "$100",
    "recycle",
    "trash",
    "thumbs",
    "snapshot",
    "found",
    "temp",
    "eadir",
)


def test_folders_of_systems_and_drives_are_no_classes_and_folders_of_users_are(tmp_path):
    for name in (*SYSTEMS, *USERS):
        touch(tmp_path, f"{name}/1.png", f"cat/{name}/2.png")
    assert set(walk(tmp_path, nested=False).folders) == {*USERS, "cat"}
    assert len(walk(tmp_path / "cat").images) == len(USERS)
    found = list_images([f"{tmp_path}/**/*.png"])
    assert {path.parent.name for path in found} == set(USERS)
    assert list_images([f"{tmp_path}/@eaDir/*.png"]) == [tmp_path / "@eaDir/1.png"]


def test_pictures_are_found_without_a_suffix_but_not_as_copies_of_others(tmp_path):
    touch(tmp_path, "notes", "a.txt")
    names = ("0001", "0002", "x.image", "scan.lsm", "IMG.0003")
    for number, name in enumerate((*names, "b.jpg", "b.jpg_original", "b.jpg.bak", "b.bak")):
        kind = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "JPEG", "JPEG", "JPEG", "JPEG")[number]
        Image.new("RGB", (8, 8)).save(tmp_path / name, kind)
    found = walk(tmp_path)
    assert sorted(found.images) == sorted((*names, "b.jpg"))
    assert found.others == {"": 1, ".txt": 1, ".jpg_original": 1, ".bak": 2}
    assert list_images([f"{tmp_path}/000*"]) == [tmp_path / "0001", tmp_path / "0002"]


def test_pictures_that_cannot_be_read_are_listed_with_those_that_can(tmp_path):
    touch(tmp_path, "1.jxl", "2.png", "3.nef")
    assert [path.name for path in list_images([tmp_path])] == ["1.jxl", "2.png", "3.nef"]
