"""Runs whose pictures lie elsewhere than when they began."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def run_of_gone_pictures(run: Path, pictures: Path, place: str) -> Path:
    """Copy a run, with another place of its pictures in its recipe."""
    own = Path(shutil.copytree(run, place))
    recipe = own / "recipe.toml"
    text = recipe.read_text()
    assert str(pictures) in text
    recipe.write_text(text.replace(str(pictures), "/gone/data/set"))
    return own


def test_a_run_goes_on_where_its_pictures_lie_now(run: Path, pictures: Path, cli: Cli) -> None:
    own = run_of_gone_pictures(run, pictures, "own")
    gone = cli("finetune", "--resume", own)
    assert gone.code == 1
    assert "/gone/data/set does not exist" in gone.err
    assert "DATA --resume own" in gone.err
    shutil.copytree(pictures, "elsewhere")
    result = cli("finetune", "elsewhere", "--resume", own, "--json")
    assert result.code == 0, result.err
    assert f"the pictures lie in {Path('elsewhere').absolute()} now" in result.err
    before = (run / "predictions.csv").read_text()
    assert (own / "predictions.csv").read_text() == before
    assert cli("finetune", "--resume", own).code == 0  # it knows the new place
    next(Path("elsewhere/train/disc").iterdir()).unlink()
    changed = cli("finetune", "elsewhere", "--resume", own)
    assert changed.code == 1
    assert "the pictures have changed" in changed.err


def test_pictures_that_moved_with_the_run_are_found(run: Path, pictures: Path, cli: Cli) -> None:
    own = run_of_gone_pictures(run, pictures, "project/runs/own")
    shutil.copytree(pictures, "project/data/set")
    result = cli("finetune", "--resume", own)
    assert result.code == 0, result.err
    assert str(Path("project/data/set").absolute()) in (own / "recipe.toml").read_text()


def test_a_table_that_moved_is_the_same_by_its_contents(pictures: Path, cli: Cli) -> None:
    shutil.copytree(pictures, "a")
    rows = [
        f"{file.relative_to('a')},{file.parent.name},{file.parents[1].name}"
        for file in sorted(Path("a").glob("*/*/*.png"))
    ]
    Path("a/table.csv").write_text("\n".join(["path,label,split", *rows]))
    options = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)
    train = ("--manifest", "a/table.csv", *options, "--views", 0, "--stages", "1:1")
    assert cli("finetune", *train, "--out", "r").code == 0
    shutil.move("a", "b")
    Path("lists").mkdir()
    lines = ["path,label,split", *(f"b/{row}" for row in rows)]
    Path("here.csv").write_text("\n".join(lines))
    for place in (("b",), ("--manifest", "here.csv")):
        result = cli("finetune", *place, "--resume", "r")
        assert result.code == 0, result.err


def test_export_without_pictures_compares_on_noise(run: Path, pictures: Path, cli: Cli) -> None:
    own = run_of_gone_pictures(run, pictures, "own")
    result = cli("export", own, "-o", "m.onnx", "--json")
    assert result.code == 0, result.err
    assert "not compared on pictures, but on noise" in result.err
    assert "--data" in result.err
    found = result.json
    assert (found["pictures"], found["accuracy_before"], found["accuracy_drop"]) == (0, None, None)
    assert found["relative_difference"] < 1e-4
    shown = cli("export", own, "-o", "n.onnx").out
    assert "accuracy" not in shown
    assert "Compared on noise" in shown
    needs = cli("export", own, "--precision", "int8", "-o", "i.onnx")
    assert needs.code == 1
    assert "name the right pictures with --data" in needs.err
    assert cli("export", own, "-o", "d.onnx", "--data", pictures, "--json").json["pictures"] == 12


@pytest.mark.parametrize("gone", ["disc", "stripes"])
def test_export_compares_on_some_of_the_classes(
    gone: str, run: Path, pictures: Path, cli: Cli
) -> None:
    shutil.copytree(pictures, "part")
    for split in ("train", "val"):
        shutil.rmtree(Path("part") / split / gone)
    whole = cli("export", run, "-o", "a.onnx", "--json").json
    result = cli("export", run, "-o", "b.onnx", "--data", "part", "--json").json
    assert result["pictures"] == 8
    assert result["accuracy_before"] == result["accuracy_after"]
    assert result["relative_difference"] < 1e-4
    assert whole["pictures"] == 12
