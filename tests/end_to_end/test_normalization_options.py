"""--normalize: kept in the run, and used again by whatever reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_a_run_predicts_on_the_scale_it_was_trained_on(pictures: Path, cli: Cli) -> None:
    mlp = ("--backbone", "mlp", "--image-size", 16, "--backbone-width", 8, "--views", 1)
    losses = {}
    for kind in ("backbone", "dataset", "none"):
        options = (*mlp, "--stages", "all:2@1e-2,1:1", "--engine", "torch", "--normalize", kind)
        options += ("--cache-dtype", "float32")  # the run's own figures come from its caches
        result = cli("finetune", pictures, *options, "--out", kind, "--json")
        assert result.code == 0, result.err
        losses[kind] = result.json["metrics"]["log_loss"]
        again = cli("evaluate", kind, pictures, "--split", "val", "--json").json
        assert again["log_loss"] == pytest.approx(losses[kind], abs=1e-5)
    assert len(set(losses.values())) == 3
    kept = {kind: json.loads(Path(kind, "model.json").read_text()) for kind in losses}
    assert kept["none"]["preprocessing"]["mean"] == [0, 0, 0]
    assert kept["none"]["preprocessing"]["std"] == [1, 1, 1]
    assert all(0.3 < mean < 0.7 for mean in kept["dataset"]["preprocessing"]["mean"])
    assert all(0.02 < std < 0.4 for std in kept["dataset"]["preprocessing"]["std"])


def test_who_starts_from_a_run_sees_pictures_on_its_scale(pictures: Path, cli: Cli) -> None:
    mlp = ("--image-size", 16, "--views", 1, "--stages", "1:1", "--engine", "torch")
    own = ("--backbone", "mlp", "--backbone-width", 8, "--no-pretrained", "--normalize", "dataset")
    assert cli("finetune", pictures, *mlp, *own, "--stages", "all:1", "--out", "first").code == 0

    def scale(run: str) -> tuple[list[float], list[float]]:
        known = json.loads(Path(run, "model.json").read_text())["preprocessing"]
        return known["mean"], known["std"]

    second = cli("finetune", pictures, "--from", "first", *mlp, "--out", "second")
    assert second.code == 0, second.err
    assert scale("second") == scale("first") != ([0.5] * 3, [0.5] * 3)
    assert "input normalisation: that of " in second.out
    other = cli("finetune", pictures, "--from", "first", *mlp, "--normalize", "none", "--out", "x")
    assert other.code == 0, other.err
    assert scale("x") == ([0] * 3, [1] * 3)
    learning = ("--image-size", 16, "--method", "rotation", "--epochs", 1, "--out", "third")
    third = cli("pretrain", pictures, *own[:4], "--weights", "first/model.safetensors", *learning)
    assert third.code == 0, third.err
    assert scale("third") == scale("first")
