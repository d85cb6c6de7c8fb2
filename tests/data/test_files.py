import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_files import touch

from transferkit.data.files import walk
from transferkit.data.names import class_name, did_you_mean, natural_sorted, shown
from transferkit.errors import UserError


def test_walk_sorts_files_by_kind_and_skips_what_is_hidden(tmp_path):
    touch(tmp_path, "b/10.JPG", "b/9.jpg", "a.Png", "n.txt", "x.heic", "README", ".DS_Store")
    touch(tmp_path, "._a.png", ".git/a.png", "__MACOSX/a.png", "Thumbs.db")
    found = walk(tmp_path)
    assert found.images == ["a.Png", "b/9.jpg", "b/10.JPG"]
    assert found.unsupported == {"x.heic": "HEIC"}
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
