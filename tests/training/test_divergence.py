"""A loss that is no number: the run stops, or goes back to what was good at half the rate."""

import itertools
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transferkit.cli import main
from transferkit.config import Averaging, Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event, Notice
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import open_run
from transferkit.training import loop
from transferkit.training.compiling import Forward
from transferkit.training.divergence import MOST_HALVINGS, Diverged, checked, halved
from transferkit.training.supervised import Objective
from transferkit.verbs.finetune import finetune, resume

MODEL = "model.safetensors"
LR = 0.02


pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def config(with_stages: Callable[..., Config]) -> Callable[..., Config]:
    """Return one stage of 3 epochs of 3 steps: the head and a block group."""

    def make(lr: float = LR, on_divergence: str = "rewind", ema: float = 0.0) -> Config:
        plain = with_stages(Stage(1, 3, lr=lr, decay=1.0))
        training = replace(plain.training, warmup=0.0, on_divergence=on_divergence)
        return replace(plain, training=training, averaging=Averaging(ema=ema))

    return make


def explode_above(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss be NaN where the classifier's weights have grown beyond a limit."""
    real = Objective.loss

    def loss(
        self: Objective,
        network: Forward,
        inputs: Tensor,
        labels: Tensor,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        value, logits = real(self, network, inputs, labels, rng)
        weight = [p for p in network.eager.parameters() if p.ndim == 2][-1]
        return value * (math.nan if weight.abs().max() > limit else 1.0), logits

    monkeypatch.setattr(Objective, "loss", loss)


def trained(config: Config, out: Path) -> tuple[bytes, list[str]]:
    """Run; return the model's bytes and the warnings about divergence."""
    events: list[Event] = []
    finetune(config, out, events.append)
    texts = [e.text for e in events if isinstance(e, Notice) and e.warning and "loss" in e.text]
    return (out / MODEL).read_bytes(), texts


def test_a_loss_is_checked() -> None:
    assert checked(1.5, 7) == 1.5
    for loss in (math.nan, math.inf, -math.inf):
        with pytest.raises(Diverged) as caught:
            checked(loss, 7)
        assert caught.value.step == 7
    assert [halved(0.8, n) for n in (0, 1, 3)] == [0.8, 0.4, 0.1]


def test_stop_says_where_and_at_which_rate(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_above(-1.0, monkeypatch)
    with pytest.raises(UserError, match="became NaN at step 1 of stage top 1") as caught:
        finetune(config(on_divergence="stop"), tmp_path / "run", lambda _: None)
    assert caught.value.exit_code == 1
    assert "2e-2" in caught.value.where
    assert caught.value.remedy.endswith("--on-divergence rewind")  # nothing is there to be kept
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_rewound_to_the_start_equals_a_run_at_half_the_rate(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """The optimiser, and the average of the weights, begin anew with them."""
    expected, none = trained(config(lr=LR / 2, ema=ema), tmp_path / "half")
    assert none == []
    explode_once(monkeypatch)
    model, texts = trained(config(ema=ema), tmp_path / "run")
    assert texts == [
        "the loss became NaN at step 2 of stage top 1: exploding; restored the last good "
        "checkpoint (the stage's start), halved the learning rate to 1e-2"
    ]
    assert model == expected
    assert open_run(tmp_path / "run").read_json("summary")["diagnosis"] == texts


def explode_once(monkeypatch: pytest.MonkeyPatch, step: int = 1) -> None:
    """Let the loss be NaN at one step, counted over all that is trained."""
    real, count = Objective.loss, [0]

    def loss(self: Objective, *arguments: Any) -> tuple[Tensor, Tensor]:
        value, logits = real(self, *arguments)
        count[0] += 1
        return value * (math.nan if count[0] == step + 1 else 1.0), logits

    monkeypatch.setattr(Objective, "loss", loss)


def test_rewinding_undoes_the_broken_epoch_but_for_the_rate(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 as without the accident; the weights after it are those that epoch 2 starts from."""
    trained(config(), tmp_path / "whole")
    explode_once(monkeypatch, step=4)  # in the middle of epoch 2
    _, texts = trained(config(), tmp_path / "run")
    assert len(texts) == 1
    assert "at step 5 " in texts[0]
    assert "(after epoch 1)" in texts[0]
    whole, rows = (open_run(tmp_path / name).read_metrics() for name in ("whole", "run"))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["val_loss"] == whole[0]["val_loss"]
    assert rows[0]["lr/head"] == whole[0]["lr/head"]
    for ours, theirs in zip(rows[1:], whole[1:], strict=True):
        assert ours["lr/head"] == theirs["lr/head"] / 2
        assert math.isfinite(ours["val_loss"])
    assert rows[1]["train_loss"] != whole[1]["train_loss"]


def test_rewinding_is_bounded(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_above(-1.0, monkeypatch)
    events: list[Event] = []
    with pytest.raises(UserError, match="became NaN") as caught:
        finetune(config(), tmp_path / "run", events.append)
    notices = [e.text for e in events if isinstance(e, Notice) and "exploding" in e.text]
    assert len(notices) == MOST_HALVINGS
    assert f"halved {MOST_HALVINGS} times from 2e-2" in caught.value.where


def test_a_second_divergence_goes_back_to_the_best_weights(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_above(3.4 * LR, monkeypatch)
    texts = trained(config(), tmp_path / "twice")[1]
    assert [text.split("restored ")[1].split(",")[0] for text in texts] == [
        "the last good checkpoint (after epoch 1)",
        "the last good checkpoint (after epoch 2)",
        "the best weights",
    ]
    weights = open_run(tmp_path / "twice").load_checkpoint("last")
    assert weights is not None
    assert all(bool(torch.isfinite(t.float()).all()) for t in weights["model"].values())


def test_validation_that_is_no_number_counts_too(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transferkit.training import loop

    real, count = loop.validate, [0]

    def validate(*arguments: Any) -> dict[str, float]:
        count[0] += 1
        return real(*arguments) | {"val_loss": loop.checked(math.inf if count[0] == 2 else 1.0, 5)}

    monkeypatch.setattr(loop, "validate", validate)
    texts = trained(config(), tmp_path / "run")[1]
    assert len(texts) == 1
    assert "became infinite at step 6 " in texts[0]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_resumed_run_goes_on_with_the_halved_rate(
    at: int, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explode_above(3.4 * LR, monkeypatch)
    whole, texts = trained(config(), tmp_path / "whole")
    count = [0]

    def show(event: Event) -> None:
        if isinstance(event, EpochEnded) or (isinstance(event, Notice) and event.text in texts):
            count[0] += 1
            if count[0] == at + 1:
                raise KeyboardInterrupt

    assert len(texts) == 3  # so there are six events: epochs and notices
    with pytest.raises(UserError, match="interrupted"):
        finetune(config(), tmp_path / "run", show)
    resume(tmp_path / "run", lambda _: None)
    assert (tmp_path / "run" / MODEL).read_bytes() == whole
    summaries = [open_run(tmp_path / name).read_json("summary") for name in ("whole", "run")]
    assert summaries[0]["diagnosis"] == summaries[1]["diagnosis"] == texts


@pytest.mark.parametrize("interrupted", [False, True])
def test_rewinding_goes_to_the_start_of_the_epoch_though_a_step_of_it_was_saved(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_after: Callable[..., Any],
    *,
    interrupted: bool,
) -> None:
    plain = config()
    last = replace(plain, training=replace(plain.training, restore_best=False))
    with monkeypatch.context() as patch:
        explode_once(patch, step=4)  # the second of epoch 2
        expected, told = trained(last, tmp_path / "whole")
    explode_once(monkeypatch, step=4)
    if interrupted:
        with stopped_after(4, loop), pytest.raises(UserError, match="interrupted"):
            finetune(last, tmp_path / "run", lambda _: None)
        resume(tmp_path / "run", lambda _: None)
    else:
        steps = itertools.count(1)
        monkeypatch.setattr(loop, "is_time", lambda stop: next(steps) == 4)  # ten minutes are over
        finetune(last, tmp_path / "run", lambda _: None)
    assert open_run(tmp_path / "run").read_json("summary")["diagnosis"] == told
    assert (tmp_path / "run" / MODEL).read_bytes() == expected


def test_a_run_that_stops_ends_with_its_best_weights_and_one_can_go_on(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = config(on_divergence="stop")
    plain = replace(plain, stages=(*plain.stages, Stage("all", 1, if_improving=True)))
    with monkeypatch.context() as patch:
        explode_once(patch, step=4)
        with pytest.raises(UserError, match="became NaN at step 5") as caught:
            finetune(plain, tmp_path / "run", lambda _: None)
    run = open_run(tmp_path / "run")
    assert len(run.read_metrics()) == 1
    summary, rows, best = run.read_json("summary"), run.read_metrics(), run.load_checkpoint("best")
    assert summary["stopped"] == caught.value.what
    assert [(s["reason"], s["epochs"]) for s in summary["stages"]] == [
        ("diverged", 1),
        ("not reached", 0),
    ]
    assert summary["metrics"]["accuracy"] == pytest.approx(rows[0]["val_accuracy"])
    weights = run.load_model()[1]
    assert best is not None
    assert all(torch.equal(weights[name], tensor) for name, tensor in best["model"].items())
    command = shlex.split(caught.value.remedy.split("go on from them: ")[1])
    assert command[command.index("--stages") + 1] == "head:30,1:3@0.01~1,all:1@0.0025?"
    short = command[command.index("--stages") + 1].replace("head:30", "head:1")
    more = ["--out", str(tmp_path / "next"), "--image-size", "32", "--engine", "torch"]
    command[command.index("--stages") + 1] = short
    monkeypatch.setattr("sys.argv", [*command, *more])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    config_used = config_of(open_run(tmp_path / "next"))
    assert config_used.backbone.weights == tmp_path / "run" / MODEL
