import pytest
from made_files import touch

from transferkit.data.named_pictures import list_images
from transferkit.errors import UserError


def test_list_images_takes_files_folders_and_patterns_in_order(tmp_path):
    touch(tmp_path, "z.png", "d/10.png", "d/2.png", "d/e/1.png", "d/n.txt", "[1].png", "plain")
    sources = [tmp_path / "z.png", str(tmp_path / "d"), f"{tmp_path}/d/*.*", tmp_path / "[1].png"]
    found = list_images([*sources, tmp_path / "plain"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["z.png", "d/2.png", "d/10.png", "d/e/1.png", "[1].png", "plain"]
    assert list_images([f"{tmp_path}/**/*.png"]) == [
        tmp_path / name for name in ("[1].png", "d/2.png", "d/10.png", "d/e/1.png", "z.png")
    ]


def test_list_images_names_everything_that_is_wrong(tmp_path):
    touch(tmp_path, "empty/n.txt")
    with pytest.raises(UserError) as caught:
        list_images([tmp_path / "empty", tmp_path / "gone.png", f"{tmp_path}/*.jpg"])
    assert caught.value.exit_code == 2
    assert caught.value.what == "3 of the given pictures cannot be used"
    lines = caught.value.where.splitlines()
    assert [line.removeprefix(str(tmp_path)) for line in lines] == [
        "/empty holds no pictures",
        "/gone.png does not exist",
        "/*.jpg matches 0 files, none of them a picture",
    ]
    with pytest.raises(UserError, match="no pictures given"):
        list_images([])
