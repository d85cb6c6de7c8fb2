"""Plans that fit a time: closed forms, and whole runs on a clock that ticks when it is read."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from transferkit.config import Augmentation, Config
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event, Notice
from transferkit.finetuning import time_budget as verb
from transferkit.finetuning.preparation import prepare
from transferkit.finetuning.summary import RunSummary
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import open_run
from transferkit.stopwatch import Stopwatch
from transferkit.training.budget import Budget, StageCost, allocate, deepest_that_fits
from transferkit.verbs.finetune import finetune, resume

HEAD = StageCost(wished=30, least=15, setup_s=20.0, train_s=0.8, validate_s=0.2)
TOP = StageCost(wished=12, least=6, setup_s=4.0, train_s=3.5, validate_s=0.5)
WHOLE = StageCost(wished=2, least=1, setup_s=0.0, train_s=40.0, validate_s=10.0)
COSTS = [HEAD, TOP, WHOLE]


def budget(limit_s: float, costs: list[StageCost] = COSTS) -> Budget:
    return Budget(limit_s, 10.0, list(costs), [], 4)


@pytest.mark.parametrize("seconds", [0.1, 3.0, 4.0, 5.6, 39.9, 400.0])
def test_epochs_fill_the_time_up_to_a_tenth_of_an_epoch(seconds: float) -> None:
    epochs = TOP.epochs_in(seconds)
    used = TOP.seconds(epochs) - TOP.setup_s
    assert used <= seconds + 1e-9
    assert seconds - used < TOP.validate_s + 0.1 * TOP.train_s + 1e-9
    assert epochs == pytest.approx(seconds / 4.0) or epochs % 1 != 0 or seconds - used < 0.85


def test_an_epoch_in_part_is_validated_like_a_whole_one() -> None:
    assert TOP.epochs_in(2 * 4.0 + 0.5 + 0.6 * 3.5) == pytest.approx(2.6)
    assert TOP.seconds(2.6) == pytest.approx(4.0 + 2.6 * 3.5 + 3 * 0.5)
    assert TOP.epochs_in(2 * 4.0 + 0.5 + 0.09 * 3.5) == 2  # too little to be worth it
    assert TOP.epochs_in(-5.0) == 0


def test_more_time_goes_deeper_and_the_last_stage_takes_what_is_left() -> None:
    # fewest: 20 + 15 = 35 s for the head, 4 + 24 = 28 s more for the top, 50 s more for the whole
    assert [deepest_that_fits(COSTS, s) for s in (34, 35, 62, 63, 112, 113)] == [-1, 0, 0, 1, 1, 2]
    assert allocate(COSTS, 10.0) == [0.0, 0.0, 0.0]
    assert allocate(COSTS, 62.0) == [42.0, 0.0, 0.0]
    assert allocate(COSTS, 63.0) == [15.0, 6.0, 0.0]
    # 81.5 s are 18.5 s beyond the fewest, half of the 15 + 24 s up to the wished: 47 % of 15 epochs
    found = allocate(COSTS, 81.5)
    assert found[0] == 15 + math.floor(18.5 / 39 * 15)
    assert HEAD.seconds(found[0]) + TOP.seconds(found[1]) == pytest.approx(81.5, abs=0.9)
    # far more than wished for: the whole network trains on
    found = allocate(COSTS, 1000.0)
    assert found[:2] == [30.0, 12.0]
    assert found[2] == pytest.approx((1000 - 50 - 52) / 50, abs=0.2)


def test_a_plan_is_corrected_by_what_happens() -> None:
    plan = budget(110.0)  # 100 s for training
    assert plan.plan_from(0, [], 37.0) == [15.0, 6.0, 0.0]
    # the head ended early, 60 s are left: the top gets them
    assert plan.plan_from(1, [15.0, 6.0, 0.0], 40.0) == [15.0, 14.0, 0.0]
    # after five of its epochs 40 s are left: ten more; after fourteen none: it ends
    assert plan.correct(1, 5, [15.0, 14.0, 0.0], 60.0) == [15.0, 15.0, 0.0]
    assert plan.correct(1, 14, [15.0, 13.4, 0.0], 101.0) == [15.0, 13.4, 0.0]
    assert plan.correct(1, 9, [15.0, 14.0, 0.0], 101.0) == [15.0, 9, 0.0]
    # the head is slower than thought: its own fewest 15 epochs come before the top's 28 s
    assert plan.correct(0, 5, [30.0, 6.0, 0.0], 62.0) == [15.0, 6.0, 0.0]
    assert plan.correct(0, 5, [30.0, 6.0, 0.0], 60.5) == [16.0, 6.0, 0.0]
    assert plan.correct(0, 5, [30.0, 6.0, 0.0], 62.1) == [42.875, 0.0, 0.0]
    # the whole network, 50 s, is the first to go
    assert plan.correct(0, 15, [30.0, 6.0, 1.0], 21.0) == [16.0, 6.0, 1.0]
    assert plan.correct(0, 15, [30.0, 6.0, 1.0], 23.0) == [30.0, 6.0, 0.0]
    # nothing fits: one epoch all the same, or no further stage
    assert plan.plan_from(0, [], 90.0) == [1.0, 0.0, 0.0]
    assert plan.plan_from(0, [], 200.0) == [1.0, 0.0, 0.0]
    assert plan.plan_from(1, [1.0, 0.0, 0.0], 200.0) == [1.0, 0.0, 0.0]
    assert [plan.is_over(1, s) for s in (102.7, 102.9)] == [False, True]  # 3 % and its validation


def test_costs_are_learnt_and_survive_a_restart() -> None:
    plan = budget(110.0)
    plan.learn(1, train_s=3.0, validate_s=0.7, part=0.5)
    assert (plan.costs[1].train_s, plan.costs[1].validate_s) == pytest.approx((4.75, 0.6))
    assert plan.costs[0] == HEAD
    plan.learn_setup(10.0, 50.0)  # half as long: a part of the cache was there
    assert plan.closing_s == 10
    plan.learn_setup(30.0, 107.0)  # a slow machine is slow in the end as well
    assert plan.closing_s == 15
    # nothing is left when the first stage is ready, but 4.4 s it has all the same
    assert plan.correct(0, 1, [1.0, 0.0, 0.0], 108.4) == [4.0, 0.0, 0.0]
    assert plan.plan_from(1, [4.0, 0.0, 0.0], 111.4) == [4.0, 0.0, 0.0]
    assert [plan.is_over(0, s) for s in (114.4, 114.6)] == [False, True]
    assert Budget.from_dict(plan.to_dict()) == plan


@pytest.fixture
def within(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plots: None
) -> Callable[[str], Config]:
    """Return the configuration of a run with a budget; what it measures is given.

    The clock ticks a second whenever someone looks: about 4 s for a step, 20 s for an epoch.
    """
    steps = dict.fromkeys(range(4), 1.0)  # a second for a picture, in every stage
    speeds = verb.Speeds(0.1, 0.5, dict.fromkeys(range(20), 0.1), steps, steps)
    monkeypatch.setattr(verb, "CLOSING_S", 11.0)  # so often does the end look at the clock
    monkeypatch.setattr(verb, "measure", lambda *_: speeds)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    return lambda text: replace(
        tiny_config,
        stages=(),
        backbone=replace(tiny_config.backbone, pretrained=True, weights=weights),
        augment=Augmentation(level="light"),
        training=replace(tiny_config.training, budget=text),
    )


measure = verb.measure


def ticking() -> Stopwatch:
    ticks = itertools.count()
    return Stopwatch(lambda: float(next(ticks)))


def ran(config: Config, out: Path) -> RunSummary:
    return finetune(config, out, lambda _: None, ticking())


@pytest.mark.parametrize(("limit_s", "deepest"), [(300, "head"), (900, "all")])
def test_a_run_ends_with_its_budget_and_its_schedule(
    limit_s: int, deepest: str, within: Callable[[str], Config], tmp_path: Path
) -> None:
    summary = ran(within(f"{limit_s}s"), tmp_path / "run")
    assert 0.9 * limit_s < summary.seconds < 1.1 * limit_s
    trained = [stage for stage in summary.stages if stage.epochs]
    assert trained[-1].name == deepest
    assert trained[-1].reason == "finished"
    for stage in summary.stages[len(trained) :]:
        assert stage.reason == "skipped: no time is left for it"
    rows = open_run(tmp_path / "run").read_metrics()
    last = [row for row in rows if row["stage_name"] == deepest]
    rates = [row["lr/head"] for row in last]
    peak = 1e-2 if deepest == "head" else 5e-3
    assert max(rates) > 0.8 * peak
    assert rates[-1] < 0.05 * peak  # annealed to the end, though the end was not known
    assert summary.metrics["accuracy"] == max(row["val_accuracy"] for row in rows)


def test_a_resumed_run_counts_the_time_before_it(
    within: Callable[[str], Config], tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 6:
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="interrupted"):
        finetune(within("400s"), tmp_path / "run", stop, ticking())
    views = open_run(tmp_path / "run").read_json("budget")["views"]
    watch = ticking()
    summary = resume(tmp_path / "run", lambda _: None, watch)
    assert views == 9
    assert summary.stages[0].epochs > 6
    assert 360 < summary.seconds < 440
    assert watch.seconds[0]["trunk"] == summary.stages[0].parts["trunk"]  # nothing is done again


def test_an_epoch_that_takes_too_long_is_broken_off(
    within: Callable[[str], Config], tmp_path: Path
) -> None:
    config = within("210s")
    config = replace(config, training=replace(config.training, batch_size=1))  # 18 slow steps
    # lone pictures need maps of more than one pixel
    config = replace(config, backbone=replace(config.backbone, image_size=64))
    summary = ran(config, tmp_path / "run")
    assert 189 < summary.seconds < 231
    rows = open_run(tmp_path / "run").read_metrics()
    assert rows[-1]["seconds"] < 0.8 * rows[0]["seconds"]
    assert summary.metrics["accuracy"] == max(row["val_accuracy"] for row in rows)


def test_a_time_too_short_for_anything_is_told(
    within: Callable[[str], Config], tmp_path: Path
) -> None:
    seen: list[Event] = []
    summary = finetune(within("20s"), tmp_path / "run", seen.append, ticking())
    warnings = [e.text for e in seen if isinstance(e, Notice) and e.warning]
    assert any("a budget of 20 s is too short" in text for text in warnings)
    assert [stage.epochs for stage in summary.stages] == [1, 0, 0, 0]
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_measuring_leaves_the_weights_alone(
    tiny_config: Config, within: Callable[[str], Config]
) -> None:
    parts = prepare(replace(within("60s"), cache=replace(tiny_config.cache)), lambda _: None)
    before = {name: t.clone() for name, t in parts.classifier.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "measure", measure)
        budget = verb.choose(parts, 60.0)
    assert all(cost.train_s > 0 and cost.validate_s > 0 for cost in budget.costs)
    for name, tensor in parts.classifier.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    parts.handles.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"training.budget": "soon"}, "training.budget must be a time such as 90s"),
        ({"stages": "head:3"}, "stages have no effect with training.budget"),
        ({"training.depth": 1}, "training.depth has no effect with training.budget"),
        ({"training.head_epochs": 3}, "training.head_epochs has no effect with training.budget"),
        ({"averaging.wise_ft": 0.5}, "averaging.wise_ft would go on after"),
        ({"averaging.swa": 0.5}, "averaging.swa must know the last epoch"),
        ({"device.compile": "auto"}, "device.compile takes a time that training.budget cannot"),
    ],
)
def test_what_a_budget_decides_cannot_be_given(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, (), {"training.budget": "2m"} | given)
    assert told in str(vars(caught.value))
    assert caught.value.exit_code == 2
