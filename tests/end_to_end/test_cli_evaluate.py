import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32, "--views", 0)


def accuracy_of(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["metrics"]["accuracy"])


def test_evaluate_gives_the_runs_own_validation_accuracy(
    run: Path, pictures: Path, cli: Cli
) -> None:
    result = cli("evaluate", run, pictures, "--json")
    assert result.code == 0, result.err
    assert result.json["count"] == 12
    assert result.json["accuracy"] == pytest.approx(accuracy_of(run))
    only_val = cli("evaluate", run, pictures / "val", "--json").json
    assert only_val["accuracy"] == result.json["accuracy"]
    assert cli("evaluate", run, pictures, "--split", "all", "--json").json["count"] == 30
    assert cli("evaluate", run, pictures, "--split", "train", "--json").json["count"] == 18


def test_a_split_that_was_drawn_is_drawn_again(pictures: Path, cli: Cli) -> None:
    flat = shutil.copytree(pictures / "train", "flat")
    drawn = ("--val-fraction", 0.4, "--seed", 7)
    summary = cli("finetune", flat, *TINY, *drawn, "--stages", "1:2", "--out", "r", "--json").json
    result = cli("evaluate", "r", flat, "--json").json
    assert result["count"] == summary["val_pictures"] < 18
    assert result["accuracy"] == pytest.approx(summary["metrics"]["accuracy"])
    shutil.copytree(pictures / "val" / "disc", "other/disc")
    shutil.copytree(pictures / "val" / "square", "other/square")
    assert cli("evaluate", "r", "other", "--json").json["count"] == 8  # other pictures: all


def test_few_pictures_of_one_class_can_be_evaluated(run: Path, pictures: Path, cli: Cli) -> None:
    Path("few/disc").mkdir(parents=True)
    shutil.copy(pictures / "val" / "disc" / "0.png", "few/disc")
    result = cli("evaluate", run, "few", "--json")
    assert result.code == 0, result.err
    assert result.json["count"] == 1


def test_unknown_classes_are_named(run: Path, pictures: Path, cli: Cli) -> None:
    shutil.copytree(pictures / "val" / "disc", "odd/dics")
    shutil.copytree(pictures / "val" / "square", "odd/square")
    result = cli("evaluate", run, "odd", "--json")
    assert result.code == 0
    assert "the model does not know 1 of the classes: dics (4)" in result.err
    assert "no pictures of 2 of the model's classes: disc, stripes" in result.err
    assert result.json["count"] == 4
    assert result.json["unknown"] == {"dics": 4}
    assert result.json["missing"] == ["disc", "stripes"]
    assert 0 <= result.json["unlike_auroc"] <= 1
    shutil.rmtree("odd/square")
    result = cli("evaluate", run, "odd")
    assert result.code == 1
    assert result.message[0] == "error: the model knows none of the classes: dics"
    assert result.message[1] == "it knows: disc, square, stripes"


def test_the_tables_for_people(run: Path, pictures: Path, cli: Cli) -> None:
    out = cli("evaluate", run, pictures).out
    assert f"accuracy {accuracy_of(run):.1%} on 12 pictures" in out
    assert "stripes" in out


def test_a_split_that_is_not_there(run: Path, pictures: Path, cli: Cli) -> None:
    result = cli("evaluate", run, pictures, "--split", "test")
    assert result.code == 2
    assert result.message[0] == "error: the data set has no test pictures"


def test_held_out_sets_need_no_training_part(run: Path, pictures: Path, cli: Cli) -> None:
    shutil.copytree(pictures / "val", "alone/test")
    expected = cli("evaluate", run, pictures, "--json").json["accuracy"]
    for words in (("--split", "test"), ("--split", "all"), ()):
        result = cli("evaluate", run, "alone", *words, "--json")
        assert (result.json["count"], result.json["accuracy"]) == (12, expected)
    files = sorted(Path("alone/test").glob("*/*.png"))
    rows = [f"{file.relative_to('alone')},{file.parent.name},test" for file in files]
    Path("alone/table.csv").write_text("\n".join(["path,label,split", *rows]))
    table = ("--manifest", "alone/table.csv", "--split", "test")
    assert cli("evaluate", run, *table, "--json").json["count"] == 12


def test_classes_are_those_of_the_model(run: Path, pictures: Path, cli: Cli) -> None:
    shutil.copytree(pictures / "val", "part/test")
    for name in ("disc", "square"):
        shutil.copytree(pictures / "train" / name, f"part/train/{name}")
    result = cli("evaluate", run, "part", "--split", "test", "--json")
    assert (result.code, result.json["count"], result.json["unknown"]) == (0, 12, {})
    shutil.copytree(pictures / "val", "batch")
    shutil.rmtree("batch/disc")
    Path("batch/disc").mkdir()
    result = cli("evaluate", run, "batch", "--json")
    assert (result.code, result.json["count"], result.json["missing"]) == (0, 8, ["disc"])
