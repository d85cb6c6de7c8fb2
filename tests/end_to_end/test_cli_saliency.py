import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]


@pytest.fixture
def nested(pictures: Path) -> Path:
    """Pictures of one name in two folders and in two formats, and one that cannot be read."""
    source = pictures / "val" / "disc" / "0.png"
    for folder in ("in/a", "in/b/a"):
        Path(folder).mkdir(parents=True)
        shutil.copy(source, f"{folder}/x.png")
        Image.open(source).save(f"{folder}/x.jpg")
    Path("in/broken.png").write_bytes(b"\x89PNG\r\n")
    return Path("in")


def test_every_picture_has_an_overlay_of_its_own(run: Path, nested: Path, cli: Cli) -> None:
    plain = cli("predict", run, nested, "--json").json["predictions"]
    result = cli("predict", run, nested, "--saliency", "maps", "--json")
    assert result.code == 0, result.err
    rows = result.json["predictions"]
    assert [{k: v for k, v in row.items() if k != "saliency"} for row in rows] == plain
    by_path = {row["path"]: row["saliency"] for row in rows}
    assert by_path.pop("in/broken.png") is None
    assert by_path == {
        path: str(Path("maps") / Path(path).relative_to("in")) + ".png" for path in by_path
    }
    assert len(by_path) == 4
    for path in by_path.values():
        with Image.open(path) as image:
            assert image.width > 2 * image.height
            assert np.ptp(np.asarray(image)) > 0


def test_rows_name_the_overlays_and_go_on(run: Path, nested: Path, cli: Cli) -> None:
    options = ("--saliency", "maps", "-o", "rows.csv")
    assert cli("predict", run, nested / "b", *options).code == 0
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["saliency", "error"]
    assert all(Path(row["saliency"]).is_file() for row in rows)


def test_an_ensemble_is_explained_as_one(run: Path, nested: Path, cli: Cli) -> None:
    shutil.copytree(run, "twin")
    picture = nested / "a" / "x.png"
    for runs, folder in ((run, "one"), (f"{run},twin", "two")):
        assert cli("predict", runs, picture, "--saliency", folder).code == 0
    one, two = (np.asarray(Image.open(f"{f}/x.png.png")).astype(int) for f in ("one", "two"))
    assert abs(one - two).max() <= 1  # a run and its copy see the same


def test_what_cannot_be_is_refused(run: Path, nested: Path, cli: Cli) -> None:
    inside = cli("predict", run, nested, "--saliency", nested / "a")
    assert inside.code == 2
    assert "holds pictures to classify" in inside.message[0]
    selecting = cli("predict", run, nested, "--saliency", "maps", "--select", "1")
    assert selecting.code == 2
    assert "no effect with --select" in selecting.message[0]
    Path("file").write_text("")
    assert cli("predict", run, nested, "--saliency", "file").code == 1
    assert not Path("maps").exists()


def test_long_names_stay_different(run: Path, pictures: Path, cli: Cli) -> None:
    source = pictures / "val" / "disc" / "0.png"
    Path("in").mkdir()
    for end in "ab":
        shutil.copy(source, "in/" + "n" * 246 + end + ".png")
    assert cli("predict", run, "in", "--saliency", "maps").code == 0
    assert len(list(Path("maps").iterdir())) == 2
