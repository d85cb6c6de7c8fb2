"""What the first releases wrote is read by today's code; see tests/fixtures/README.md."""

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from transferkit.runs.folder import FORMAT_VERSION

Cli = Callable[..., Any]
ARCHIVE = Path(__file__).resolve().parents[1] / "fixtures" / "first_runs.tar.xz"


@pytest.fixture
def old(own_folder: Path) -> Path:
    """The runs, free to be changed, with recipes that name the pictures where they lie now."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(own_folder, filter="data")
    for recipe in own_folder.glob("*/recipe.toml"):
        recipe.write_text(recipe.read_text().replace("/data/", f"{own_folder}/"))
    return own_folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_answers(path: Path, then: Path) -> bool:
    """Whether rows say what they said then: the same names, probabilities to five digits."""
    now, before = rows_of(path), rows_of(then)
    names = ("path", "label", "label_2", "label_3", "error")
    shares = ("probability", "probability_2", "probability_3")
    assert len(now) == len(before) == 9
    return all(
        [a[n] for n in names] == [b[n] for n in names]
        and all(abs(float(a[n]) - float(b[n])) < 2e-5 for n in shares)
        for a, b in zip(now, before, strict=True)
    )


def test_the_first_run_predicts_and_measures_as_it_did(cli: Cli, old: Path) -> None:
    done = cli("predict", "finetuned", "pictures/val", "-o", "now.csv", "--engine", "torch")
    assert done.code == 0, done.err
    assert same_answers(Path("now.csv"), Path("predictions_then.csv"))
    now = cli("evaluate", "finetuned", "pictures", "--json").json
    for name, then in json.loads(Path("evaluated_then.json").read_text()).items():
        if isinstance(then, float):
            assert now[name] == pytest.approx(then, abs=1e-5), name
        elif name in ("classes", "count", "confusion"):
            assert now[name] == then, name


def test_the_first_run_is_reported_compared_and_exported(cli: Cli, old: Path) -> None:
    for command in (
        ("report", "finetuned"),
        ("report", "pretrained"),
        ("export", "finetuned", "--output", "model.onnx", "--pictures", "4"),
        ("predict", "model.onnx", "pictures/val", "-o", "now.csv"),
    ):
        done = cli(*command)
        assert done.code == 0, done.err
    assert "55.6%" in Path("finetuned/report.html").read_text()
    assert same_answers(Path("now.csv"), Path("predictions_then.csv"))


def test_a_run_begun_by_the_first_release_is_not_resumed_but_begun_anew(
    cli: Cli, old: Path
) -> None:
    what, _, remedy = cli("finetune", "--resume", "interrupted").message
    assert what == "error: the run in interrupted was started by an early release of transferkit"
    assert remedy.endswith("transferkit finetune --recipe interrupted")
    done = cli("finetune", "--recipe", "interrupted", "--out", "again")
    assert done.code == 0, done.err
    then = load_file("finetuned/model.safetensors")
    now = load_file("again/model.safetensors")
    assert now.keys() == then.keys()
    assert all((now[n] == then[n]).all() for n in then if n.startswith("backbone."))


def test_the_first_pretraining_is_read_and_fine_tuned(cli: Cli, old: Path) -> None:
    stored = load_file("pretrained/model.safetensors")
    done = cli("embed", "pretrained", "pictures/val", "-o", "x.safetensors", "--engine", "torch")
    assert done.code == 0, done.err
    features = load_file("x.safetensors")["features"]
    assert features.shape == (9, 8)
    assert torch.from_numpy(features.astype("float32")).std(0).min() > 0
    assert cli("pretrain", "--resume", "pretrained").code == 0
    again = load_file("pretrained/model.safetensors")
    assert all((again[name] == stored[name]).all() for name in stored)
    options = ("--stages", "head:1", "--views", "1", "--batch-size", "6", "--out", "tuned")
    done = cli("finetune", "pictures", "--from", "pretrained", *options)
    assert done.code == 0, done.err
    tuned = load_file("tuned/model.safetensors")
    assert all((tuned[f"backbone.{name}"] == stored[name]).all() for name in stored)


@pytest.mark.parametrize("name", ["finetuned", "pretrained"])
def test_a_run_of_a_newer_format_is_refused_with_advice(cli: Cli, old: Path, name: str) -> None:
    newer = f"format {FORMAT_VERSION + 1}\n"
    recipe = Path(name, "recipe.toml")
    assert "format 1\n" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("format 1\n", newer))
    shutil.copytree(name, "before")
    command = "finetune" if name == "finetuned" else "pretrain"
    for words in (
        ("predict", name, "pictures/val"),
        ("evaluate", name, "pictures"),
        ("report", name),
        ("export", name, "--output", "m.onnx"),
        ("embed", name, "pictures/val", "-o", "x.csv"),
        (command, "--resume", name),
        ("finetune", "pictures", "--from", name),
    ):
        done = cli(*words)
        what, detail, remedy = done.message
        assert (done.code, what) == (
            1,
            f"error: {name} was made by a newer release of transferkit",
        ), words
        assert detail == f"its format is {FORMAT_VERSION + 1}; this release reads up to 1"
        assert remedy == "upgrade: pip install --upgrade transferkit"
    kept = sorted(p.relative_to(name) for p in Path(name).rglob("*"))
    assert kept == sorted(p.relative_to("before") for p in Path("before").rglob("*"))
