"""The range test: what it measures, what it suggests, and that it leaves nothing behind."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from transferkit.config import Config, OptimizerOptions, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.finetuning.preparation import prepare
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder, open_run
from transferkit.training.cache_choice import choose_base
from transferkit.training.rate_range import (
    Range,
    batches_without_end,
    has_diverged,
    range_test,
    read_range,
    two_digits,
)
from transferkit.training.run import make_run
from transferkit.training.sources import open_source
from transferkit.verbs.find_lr import find_lr, measure
from transferkit.verbs.finetune import finetune, resume

NOWHERE = RunFolder(Path("nowhere"))


@pytest.fixture
def config(with_stages: Callable[..., Config]) -> Callable[..., Config]:
    """Return the tiny run whose first rate is to be found."""

    def make(*stages: Stage) -> Config:
        plain = with_stages(*stages)
        return replace(plain, training=replace(plain.training, lr="auto", unfrozen_lr=1e-3))

    return make


def silent(event: Event) -> None:
    pass


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    rates = Range(1e-6, 1.0, 121).rates()
    losses = [1 + 0.1 * (math.log10(rate) + 2) ** 2 for rate in rates]
    found = read_range("head", rates, losses, diverged=False)
    assert found.lowest == pytest.approx(1e-2)
    assert found.suggestion == 1e-3
    assert found.smoothed[80] == pytest.approx(1 + 0.1 * 0.25**2, abs=1e-3)  # plus its variance
    assert found.steepest < 1e-5  # a parabola is steepest at its end, but for the smoothing there
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 121


def test_the_last_loss_is_left_out_when_it_exploded() -> None:
    rates = Range(1e-6, 1.0, 121).rates()
    losses = [1 + 0.1 * (math.log10(rate) + 2) ** 2 for rate in rates[:100]]
    found = read_range("head", rates, [*losses, math.nan], diverged=True)
    assert found.lowest == pytest.approx(1e-2)
    assert len(found.losses) == 100


def test_noise_does_not_move_the_suggestion_far() -> None:
    rates = Range(1e-6, 1.0, 200).rates()
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.05, 200)
        losses = 1 + 0.1 * (np.log10(rates) + 2) ** 2 + noise
        found = read_range("head", rates, losses.tolist(), diverged=False)
        assert 3e-4 < found.suggestion < 3e-3


@pytest.mark.parametrize(
    ("losses", "diverged", "why"),
    [
        ([2.0] * 50, False, "falls nowhere"),
        (np.linspace(2, 3, 50).tolist(), False, "falls nowhere"),
        ([2.0, math.nan], True, "explodes at once"),
    ],
)
def test_without_a_fall_nothing_is_suggested(losses: list[float], diverged: bool, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        read_range("head", Range(1e-6, 1.0, 50).rates(), losses, diverged)
    assert caught.value.where == "tried 1e-6 to 1e0 in 50 steps"


def test_divergence_is_a_loss_far_above_the_lowest_or_no_number() -> None:
    assert not has_diverged([2.0, 1.0, 3.9])
    for last in (4.1, math.nan, math.inf):
        assert has_diverged([2.0, 1.0, last])
    assert two_digits(0.0023456) == 2.3e-3


def test_the_losses_are_those_of_a_plain_loop_and_the_weights_are_as_before(
    with_stages: Callable[..., Config],
) -> None:
    """Against torch's own SGD on the same batches, each step at the next rate."""
    plain = replace(with_stages(Stage(1, 2, decay=1.0)), optimizer=OptimizerOptions(name="sgd"))
    plain = replace(plain, training=replace(plain.training, weight_decay=0.0))
    parts = prepare(plain, silent)
    stage, (base, _) = parts.plan.stages[0], choose_base(parts, parts.plan.stages)
    run = make_run(parts, NOWHERE)
    before = {n: t.clone() for n, t in run.classifier.state_dict().items()}
    tried = Range(1e-3, 1e-1, 20)
    events = range_test(parts, base, tried)
    while True:
        try:
            next(events)
        except StopIteration as end:
            found = end.value
            break
    assert all(torch.equal(t, before[n]) for n, t in run.classifier.state_dict().items())
    source = next_value(open_source(parts, stage, base))
    labels = run.material.index.labels[run.material.train]
    picks = batches_without_end(labels, run.settings, source.num_views, 20)
    assert sum(len(pick) for pick, _ in picks[:3]) == len(labels)  # an epoch
    trained = [p for p in source.network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    source.network.train()
    for rate, expected, (pick, _), batch in zip(
        tried.rates(), found.losses, picks, source.train_inputs(picks), strict=True
    ):
        target = torch.from_numpy(labels[pick])
        loss = functional.cross_entropy(source.network(batch), target, label_smoothing=0.1)
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found.losses[0] == pytest.approx(math.log(3), abs=1e-5)  # the head starts at zero
    assert found.losses[-1] < found.losses[0]
    parts.handles.close()


def next_value(generator: object) -> object:
    """Run a generator to its end and return what it returns."""
    while True:
        try:
            next(generator)  # type: ignore[call-overload]
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("unfreeze", [1, "all"])
def test_auto_is_the_rate_of_the_test_and_the_run_is_as_if_it_had_been_given(
    unfreeze: object, config: Callable[..., Config], tmp_path: Path
) -> None:
    auto = config(Stage(unfreeze, 2), Stage("all", 1))  # type: ignore[arg-type]
    tests = []
    for _ in range(2):
        parts = prepare(auto, silent)
        tests.append(measure(parts, Range(), silent))
        parts.handles.close()
    found = tests[0]
    assert tests[1] == found  # a seed decides all
    finetune(auto, tmp_path / "auto", silent)
    kept = config_of(open_run(tmp_path / "auto")).training
    assert kept.lr == kept.unfrozen_lr == found.suggestion  # the stage unfreezes blocks
    given = replace(auto, training=replace(auto.training, lr=0.5, unfrozen_lr=found.suggestion))
    finetune(given, tmp_path / "given", silent)
    models = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("auto", "given")]
    assert models[0] == models[1]
    rates = [open_run(tmp_path / "auto").read_metrics()[0][c] for c in ("lr/head",)]
    assert 0 < rates[0] < found.suggestion  # below the peak, where the schedule puts it


def test_a_resumed_run_keeps_the_rate_that_was_found(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    auto = config(Stage(1, 3))
    finetune(auto, tmp_path / "whole", silent)

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="interrupted"):
        finetune(auto, tmp_path / "run", stop)
    resume(tmp_path / "run", silent)
    models = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "run")]
    assert models[0] == models[1]


def test_the_plot_is_written_where_it_is_wanted(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    found, path = find_lr(config(Stage(1, 2)), tmp_path / "x.png", Range(steps=40), silent)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert found.stage == "top 1"
    assert found.suggestion == two_digits(found.lowest / 10)
    with pytest.raises(UserError, match=r"must end in \.png"):
        find_lr(config(Stage(1, 2)), tmp_path / "x.jpg", Range(), silent)
    with pytest.raises(UserError, match="must be below"):
        find_lr(config(Stage(1, 2)), None, Range(1.0, 0.5), silent)
