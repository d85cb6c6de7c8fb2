import csv
import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.distributions import Categorical

from transferkit.inference.calibration import calibrate

Cli = Callable[..., Any]
QUICK = ("--image-size", "64", "--stages", "head:3@3e-2, 1:1", "--views", "1")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_folder_is_complete_and_agrees_with_itself(run: Path) -> None:
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert there == {
        *("recipe.toml", "data.json", "summary.json", "model.json", "model.safetensors"),
        *("metrics.csv", "predictions.csv", "log.txt", "report.html"),
        *("calibration.json", "validation.safetensors", "plots/reliability.png"),
        *("reference.safetensors", "README.md"),
        *("checkpoints/last.pt", "checkpoints/best.pt"),
        "monitoring.csv",
        *("plots/inside.png", "plots/gradients.png"),
        *("plots/curves.png", "plots/learning_rates.png", "plots/confusion.png"),
    }
    summary = json.loads((run / "summary.json").read_text())
    predictions = rows_of(run / "predictions.csv")
    right = sum(row["truth"] == row["label"] for row in predictions)
    assert len(predictions) == 12
    assert summary["metrics"]["accuracy"] == pytest.approx(right / 12)
    epochs = rows_of(run / "metrics.csv")
    assert [row["stage"] for row in epochs] == ["0", "0", "0", "1", "1"]
    best = max(float(row["val_accuracy"]) for row in epochs)
    assert summary["metrics"]["accuracy"] == pytest.approx(best)
    description = json.loads((run / "model.json").read_text())
    assert description["classes"] == ["disc", "square", "stripes"]
    assert description["data"]["splits"] == {"train": 18, "val": 12, "test": 0}
    for plot in (run / "plots").iterdir():
        with Image.open(plot) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors() or []) > 3
    log = (run / "log.txt").read_text().splitlines()
    assert sum("StageEnded" in line for line in log) == 2


def test_the_calibration_of_a_run_follows_from_its_validation_logits(run: Path) -> None:
    written = load_file(run / "validation.safetensors")
    known = json.loads((run / "calibration.json").read_text())
    found = calibrate(written["logits"], written["labels"])
    assert known["temperature"] == pytest.approx(found.temperature)
    assert known["after"]["ece"] == pytest.approx(found.after.ece)
    assert json.loads((run / "model.json").read_text())["temperature"] == known["temperature"]
    probabilities = (written["logits"].double() / found.temperature).softmax(dim=1)
    rows = rows_of(run / "predictions.csv")
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        probabilities.amax(dim=1).tolist(), abs=1e-6
    )
    assert [float(row["entropy"]) for row in rows] == pytest.approx(
        Categorical(probabilities).entropy().tolist(), abs=1e-5
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"]["ece"] >= 0
    assert written["features"].shape[0] == 12


def test_the_written_recipe_repeats_the_run(run: Path, cli: Cli) -> None:
    result = cli("finetune", "--recipe", run, "--out", "again")
    assert result.code == 0, result.err
    assert digest(Path("again/model.safetensors")) == digest(run / "model.safetensors")
    assert Path("again/recipe.toml").read_bytes() == (run / "recipe.toml").read_bytes()
    assert Path("again/predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_another_seed_gives_another_model(run: Path, cli: Cli) -> None:
    result = cli("finetune", "--recipe", run, "--out", "other", "--seed", 1)
    assert result.code == 0, result.err
    assert digest(Path("other/model.safetensors")) != digest(run / "model.safetensors")


def test_pretrained_run_with_json(samples: Path, cli: Cli) -> None:
    result = cli("finetune", samples, *QUICK, "--json")
    assert result.code == 0, result.err
    summary = result.json
    run = Path(summary["run"])
    assert run.parent == Path("runs")
    assert run.name.endswith("-samples0")
    assert summary["backbone"] == "tf_efficientnet_lite0"
    assert summary["train_pictures"] == 24
    assert summary["val_pictures"] == 12
    assert [stage["name"] for stage in summary["stages"]] == ["head", "top 1"]
    assert [stage["cached"] for stage in summary["stages"]] == [True, True]
    assert summary["metrics"]["accuracy"] > 0.5  # chance is a third
    assert json.loads((run / "summary.json").read_text()) == summary
    assert "stage 1 · head" in result.err  # progress is shown, but not on standard output
    assert "\x1b" not in result.out + result.err


def test_what_is_printed_without_json(samples: Path, cli: Cli) -> None:
    result = cli("finetune", samples, *QUICK, "--out", "mine")
    assert result.code == 0
    assert result.err == ""
    accuracy = json.loads(Path("mine/summary.json").read_text())["metrics"]["accuracy"]
    assert f"accuracy {accuracy:.1%} on 12 validation pictures of 3 classes" in result.out
    assert "run folder   mine" in result.out
    assert "transferkit predict mine PICTURES..." in result.out


def test_flags_win_over_set_and_set_over_the_recipe(run: Path, cli: Cli, pictures: Path) -> None:
    Path("mine.toml").write_text("[training]\nlr = 1e-4\nseed = 3\nbatch_size = 4\n")
    sets = ("--set", "training.lr=2e-4", "--set", "training.seed=4", "--set", "stages=1:1")
    tiny = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32, "--views", 0)
    result = cli(
        "finetune", pictures, "--recipe", "mine.toml", *sets, *tiny, "--seed", 5, "--out", "r"
    )
    assert result.code == 0, result.err
    recipe = tomllib.loads(Path("r/recipe.toml").read_text())
    assert recipe["training"]["lr"] == 2e-4
    assert recipe["training"]["seed"] == 5
    assert recipe["training"]["batch_size"] == 4
    assert recipe["stages"] == [{"unfreeze": 1, "epochs": 1, "if_improving": False}]


def test_a_manifest_in_place_of_folders(run: Path, cli: Cli, pictures: Path) -> None:
    files = sorted(pictures.glob("*/*/*.png"))
    lines = [f"{f},{f.parent.name},{f.parent.parent.name}" for f in files]
    Path("all.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    result = cli(
        *(
            "finetune",
            "--manifest",
            "all.csv",
            "--allow-outside",
            "--backbone",
            "test_efficientnet",
        ),
        *("--no-pretrained", "--image-size", 32, "--stages", "1:1", "--out", "m", "--json"),
    )
    assert result.code == 0, result.err
    assert (result.json["train_pictures"], result.json["val_pictures"]) == (18, 12)


def test_resuming_a_finished_run_changes_nothing(run: Path, cli: Cli) -> None:
    before = digest(run / "model.safetensors"), (run / "metrics.csv").read_bytes()
    result = cli("finetune", "--resume", run)
    assert result.code == 0, result.err
    assert (digest(run / "model.safetensors"), (run / "metrics.csv").read_bytes()) == before


def test_class_names_that_are_numbers_can_be_excluded(pictures: Path, cli: Cli) -> None:
    for split in ("train", "val"):
        for number, kind in enumerate(("disc", "square", "stripes")):
            Path(f"d/{split}").mkdir(parents=True, exist_ok=True)
            Path(f"d/{split}/{number}").symlink_to(pictures / split / kind)
    tiny = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)
    result = cli("plan", "d", *tiny, "--exclude", "2", "--json")
    assert result.code == 0, result.err
    assert cli("plan", "d", *tiny, "--exclude", "1,2").message[0].endswith("only one class: 0")
    repeated = cli("plan", "d", *tiny, "--exclude", "1", "--exclude", "2")
    assert repeated.message[0].endswith("only one class: 0")
