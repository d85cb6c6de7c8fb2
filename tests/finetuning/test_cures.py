"""The diagnosis advises what is not in force yet, and its next command is whole."""

from pathlib import Path
from typing import Any

import pytest

from transferkit.evaluation.layer_plots import gradients, suggested_clip
from transferkit.finetuning.cures import cures
from transferkit.finetuning.diagnosis import diagnose
from transferkit.recipes.reading import load_config

DEEP = {"backbone.name": "mlp", "backbone.depth": 20}
LOGISTIC = DEEP | {"backbone.activation": "logistic"}
CLIPPED = {"clipping.norm": 1.0}


def flags(ill: str, given: dict[str, Any], clip_norm: float | None = 2.345) -> list[str]:
    return [f for f, _ in cures(ill, load_config(None, (), given), "all", clip_norm)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (LOGISTIC, ["--activation relu", "--backbone-skip", "--backbone-batchnorm before"]),
        (
            LOGISTIC | {"backbone.initializer": "normal:1.0"},
            ["--initializer glorot_normal", "--activation relu --initializer he_normal",
             "--backbone-skip", "--backbone-batchnorm before"],
        ),
        (DEEP, ["--backbone-skip", "--backbone-batchnorm before"]),
        (DEEP | {"backbone.skip": True, "backbone.batchnorm": ["first"]},
         ["--backbone-batchnorm first,before"]),
        (DEEP | {"backbone.skip": True, "backbone.batchnorm": ["after"]}, []),
        (DEEP | {"backbone.activation": "selu", "backbone.initializer": "he_normal"},
         ["--initializer lecun_normal"]),
        ({}, []),
    ],
)  # fmt: skip
def test_vanishing_gradients(given: dict[str, Any], expected: list[str]) -> None:
    assert flags("vanishing", given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["--unfrozen-lr 0.0001", "--clip-norm 2.3", "--warmup 0.3"]),
        (CLIPPED, ["--unfrozen-lr 0.0001", "--warmup 0.3"]),
        (CLIPPED | {"training.warmup": 0.2}, ["--unfrozen-lr 0.0001"]),
        (CLIPPED | {"stages": "all:3@2e-2,2:1", "training.warmup": 0.1},
         ["--stages all:3@0.002,2:1"]),
        ({"schedule.name": "1cycle"} | CLIPPED, ["--unfrozen-lr 0.0001"]),
    ],
)  # fmt: skip
def test_too_fast(given: dict[str, Any], expected: list[str]) -> None:
    assert flags("too fast", given) == expected


def test_dead_units_and_no_measured_norm() -> None:
    assert flags("dead", DEEP)[0] == "--activation elu"
    assert flags("dead", {})[0] == "--replace-activations leaky_relu"
    given = {"backbone.replace_activations": "leaky_relu"}
    assert flags("dead", given) == ["--unfrozen-lr 0.0001"]
    assert "--clip-norm" not in " ".join(flags("exploding", {}, None))


def monitored(norm_95: float, below: float) -> list[dict[str, Any]]:
    steps = {"global_norm_median": 1.0, "global_norm_95": norm_95, "global_norm_max": 9.0}
    rows = [("stem", 0, below), ("head", 1, 1.0)]
    return [
        {"stage": 0, "epoch": epoch, "group": group, "depth": depth, "gradient_norm": norm, **steps}
        for epoch in (1, 2)
        for group, depth, norm in rows
    ]


def test_the_next_command_repeats_the_run_with_the_first_cures() -> None:
    config = load_config(None, (), {"data.path": "my pictures", **LOGISTIC})
    epochs = [{"stage": 0, "stage_name": "all", "train_loss": 99.0}] * 2
    lines = diagnose(monitored(3.0, 1e-9), epochs, 4, config, Path("runs/a"))
    assert [line.split("; try ")[0].rpartition(": ")[2] for line in lines[:2]] == [
        "vanishing", "exploding"
    ]  # fmt: skip
    assert "(--clip-norm 3)" in lines[1]
    assert lines[2:] == [
        "next: transferkit finetune 'my pictures' --recipe runs/a --activation relu --backbone-skip"
    ]
    healthy = [{**row, "train_loss": 1.0} for row in epochs]
    assert diagnose(monitored(3.0, 0.5), healthy, 4, config, Path("r")) == []


def test_the_plot_draws_the_norms_and_the_limit() -> None:
    rows = monitored(3.0, 0.5)
    assert suggested_clip(rows) == 3.0
    assert suggested_clip([{"gradient_norm": 1.0}]) is None
    (axes,) = gradients(rows, 0.0).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert (drawn["median"], drawn["95 %"], drawn["maximum"]) == ([1, 1], [3, 3], [9, 9])
    assert "suggested --clip-norm 3" in [text.get_text() for text in axes.texts]
    (axes,) = gradients(rows, 5.0).axes
    assert "--clip-norm 5" in [text.get_text() for text in axes.texts]
    assert gradients([], 0.0).axes
