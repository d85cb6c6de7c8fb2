import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transferkit.config import (
    Augmentation,
    Averaging,
    Config,
    OptimizerOptions,
    Regularization,
    ScheduleOptions,
    Stage,
)
from transferkit.errors import UserError
from transferkit.events import (
    EpochEnded,
    Event,
    Notice,
    Progress,
    StageEnded,
    StageStarted,
)
from transferkit.recipes.reading import to_toml
from transferkit.runs.folder import RunFolder, open_run
from transferkit.stopwatch import Stopwatch, by_part
from transferkit.training import cache_filling, loop
from transferkit.training import run as run_module
from transferkit.training.picks import batches
from transferkit.training.run import RunState
from transferkit.training.schedules import cosine, with_warmup
from transferkit.verbs.finetune import finetune, resume

MODEL = "model.safetensors"


pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_filling, "EXTRACTION_ROWS", 16)
    monkeypatch.setattr(cache_filling, "DERIVATION_ROWS", 16)


def silent(event: Event) -> None:
    pass


def trained(config: Config, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a configuration; return its summary and its rows of metrics."""
    finetune(config, out, silent)
    folder = open_run(out)
    return folder.read_json("summary"), folder.read_metrics()


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def state(**values: Any) -> RunState:
    return RunState(**values)


def row(accuracy: float, loss: float = 1.0) -> dict[str, Any]:
    return {"val_accuracy": accuracy, "val_balanced_accuracy": accuracy / 2, "val_loss": loss}


def test_a_left_over_picture_joins_the_last_batch() -> None:
    sizes = {n: [len(b) for b in batches(np.arange(n), 4)] for n in (1, 4, 5, 6, 8, 9)}
    assert sizes == {1: [1], 4: [4], 5: [5], 6: [4, 2], 8: [4, 4], 9: [4, 5]}
    assert np.array_equal(np.concatenate(batches(np.arange(9), 4)), np.arange(9))
    assert [len(b) for b in batches(np.arange(3), 1)] == [1, 1, 1]


def test_the_best_is_by_metric_then_by_loss_and_gains_count_from_min_delta() -> None:
    run = RunState()
    assert run.record(row(0.5, 1.0), "accuracy", 0.1)
    assert not run.record(row(0.5, 1.0), "accuracy", 0.1)
    assert run.record(row(0.5, 0.9), "accuracy", 0.1)  # as accurate, and surer
    assert run.record(row(0.55, 5.0), "accuracy", 0.1)  # better, but too little to go on for
    assert run.epochs_without_gain == 3
    assert run.record(row(0.7), "accuracy", 0.1)
    assert (run.epochs_without_gain, run.best, run.epoch) == (0, (0.7, -1.0), 5)
    assert [r["best"] for r in run.rows] == [1, 0, 1, 1, 1]
    run.next_stage()
    assert (run.stage, run.epoch, run.epochs_without_gain) == (1, 0, 0)
    assert not run.record(row(0.6), "accuracy", 0.0)  # worse than the stage before
    assert run.stage_best == 0.6
    by_loss, balanced = RunState(), RunState()
    assert [by_loss.record(row(a, b), "loss", 0) for a, b in ((0.9, 1), (0.1, 0.9))] == [True] * 2
    assert balanced.record(row(0.8), "balanced_accuracy", 0)
    assert balanced.best == (0.4, -1.0)


def test_events_rows_and_learning_rates(tiny_config: Config, tmp_path: Path) -> None:
    events: list[Event] = []
    finetune(tiny_config, tmp_path / "run", events.append)
    seen = [e for e in events if isinstance(e, StageStarted | EpochEnded | StageEnded)]
    one = [StageStarted, EpochEnded, EpochEnded, StageEnded]
    assert [type(e) for e in seen] == one * 3
    assert [e.name for e in seen if isinstance(e, StageStarted)] == ["top 1", "top 3", "all"]
    assert [e.cached for e in seen if isinstance(e, StageStarted)] == [True, True, False]
    trainable = [e.trainable_parameters for e in seen if isinstance(e, StageStarted)]
    assert trainable == sorted(trainable)
    assert trainable[-1] == seen[0].total_parameters  # type: ignore[union-attr]
    rows = open_run(tmp_path / "run").read_metrics()
    assert [(r["stage"], r["epoch"], r["cached"]) for r in rows] == [
        (0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1), (2, 1, 0), (2, 2, 0)
    ]  # fmt: skip
    # 18 pictures in batches of 6: the middle of the last of 3 steps, in 2 epochs
    for r in rows:
        factor = with_warmup(cosine(ScheduleOptions()), (r["epoch"] * 3 - 0.5) / 6, 0.1)
        assert r["lr/head"] == pytest.approx(5e-3 * factor)
        assert r["lr/blocks.4"] == pytest.approx(5e-3 * factor * 0.5)
    assert rows[5]["lr/stem"] == pytest.approx(rows[5]["lr/head"] * 0.5**6)
    assert rows[0].get("lr/stem") in (None, "")


def test_every_second_is_in_one_part_of_one_stage(tiny_config: Config, tmp_path: Path) -> None:
    ticks = itertools.count()
    watch = Stopwatch(lambda: float(next(ticks)))  # every look at the clock takes a second
    summary = finetune(tiny_config, tmp_path / "run", silent, watch)
    parts = {stage.name: stage.parts for stage in summary.stages}
    trained = {"training", "evaluation", "checkpoint"}
    filled = {"prepare engine", "pictures", "trunk", "cache write", "cache read"}
    assert parts["top 1"].keys() == trained | filled | {"other"}  # 48 rows, 16 at a time
    assert parts["top 3"].keys() == parts["all"].keys() - {"pictures"} | {"cache read"}
    assert parts["all"].keys() == trained | {"pictures", "other"}
    assert {"scan", "backbone", "final validation", "plots"} <= summary.parts.keys()
    assert summary.seconds == sum(summary.parts.values())
    assert summary.seconds == watch.total() - 1  # all looks but this one
    for stage in summary.stages:
        assert stage.seconds == sum(stage.parts.values())
        assert all(seconds <= summary.parts[name] for name, seconds in stage.parts.items())
    assert summary.to_dict() == open_run(tmp_path / "run").read_json("summary")


def test_a_resumed_run_counts_what_was_spent_before(tiny_config: Config, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.stage == 1:
            raise KeyboardInterrupt

    ticks = itertools.count()
    with pytest.raises(UserError, match="interrupted"):
        finetune(tiny_config, tmp_path / "run", stop, Stopwatch(lambda: float(next(ticks))))
    saved = open_run(tmp_path / "run").load_checkpoint("last")
    assert saved is not None
    before = by_part(saved["state"]["seconds"])
    watch = Stopwatch(lambda: 0.0)  # nothing takes any time from here on
    summary = resume(tmp_path / "run", silent, watch)
    assert summary.stages[0].parts == saved["state"]["seconds"][0]
    assert {name: value for name, value in summary.parts.items() if value} == before
    assert summary.seconds == sum(before.values()) > 30


@pytest.mark.parametrize("first", ["head", 1])
def test_cached_training_equals_live_training(
    first: Any, with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(first, 6), Stage(1, 1))  # one epoch of clean views
    # a model without parameters that cancel out (a bias before batch normalisation): their gradient
    # is nothing but rounding, which Adam scales up to full steps
    backbone = replace(config.backbone, name="test_convnext")
    config = replace(config, backbone=backbone, augment=Augmentation("medium", views=2))
    live = replace(config, cache=replace(config.cache, enabled=False))
    _, cached_rows = trained(config, tmp_path / "cached")
    _, live_rows = trained(live, tmp_path / "live")
    assert [r["cached"] for r in cached_rows] == [1] * 7
    assert [r["cached"] for r in live_rows] == [0] * 7
    for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        ours, theirs = ([r[column] for r in rows] for rows in (cached_rows, live_rows))
        assert ours == pytest.approx(theirs, abs=1e-5), column
    losses = [r["train_loss"] for r in cached_rows]
    assert min(losses) < losses[0] - 0.05  # something was learned
    ours, theirs = (load_file(tmp_path / name / MODEL) for name in ("cached", "live"))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), atol=2e-5), name


@pytest.mark.parametrize("views", [0, 3])
def test_the_first_epochs_see_clean_views_before_the_varied_ones_are_computed(
    views: int, with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_stages(Stage(1, 13), Stage(1, 13))
    config = replace(config, augment=replace(config.augment, level="light", views=views))
    seen: list[set[int]] = []
    real = loop.epoch_picks

    def picks(*arguments: Any) -> Any:
        found = real(*arguments)
        seen.append({int(v) for _, numbers in found for v in numbers})
        return found

    monkeypatch.setattr(loop, "epoch_picks", picks)
    events: list[Event] = []
    finetune(config, tmp_path / "run", events.append)
    assert seen[:2] == [{0}] * 2
    if views:
        assert all(len(numbers) > 0 and max(numbers) > 0 for numbers in seen[2:])
    filled = [n for n, e in enumerate(events) if isinstance(e, Progress) and "trunk" in e.what]
    ended = [n for n, e in enumerate(events) if isinstance(e, EpochEnded)]
    after = [n for n in filled if n > ended[1]]
    assert len([n for n in filled if n < ended[0]]) > 0
    assert bool(after) == bool(views)
    assert all(n < ended[2] for n in after)


def test_same_seed_same_bytes(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(
        tiny_config,
        head=replace(tiny_config.head, dropout=(0.3,), layers=(8,)),
        augment=replace(tiny_config.augment, mixup=0.3, cutmix=0.3),
    )
    models = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        each = replace(config, training=replace(config.training, seed=seed))
        trained(each, tmp_path / name)
        models.append((tmp_path / name / MODEL).read_bytes())
        torch.rand(5)  # whatever the global generator's state
    assert models[0] == models[1]
    assert models[0] != models[2]


def test_a_stage_that_makes_it_worse_leaves_no_trace(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    good = (Stage(1, 4), Stage(2, 2))
    bad = Stage("all", 2, lr=30.0)
    summary, rows = trained(with_stages(*good, bad), tmp_path / "worse")
    trained(with_stages(*good), tmp_path / "good")
    best = max(rows, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert best["stage"] < 2
    assert min(r["val_loss"] for r in rows if r["stage"] == 2) > best["val_loss"]
    assert summary["metrics"]["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-12)
    assert (tmp_path / "worse" / MODEL).read_bytes() == (tmp_path / "good" / MODEL).read_bytes()


@pytest.mark.parametrize("order", [(1, "all"), ("all", 1), (3, 1)])
def test_the_run_ends_with_its_best_row(
    order: tuple[Any, ...], with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(*(Stage(what, 3) for what in order))
    summary, rows = trained(config, tmp_path / "run")
    best = max(rows, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert [r for r in rows if r["best"]][-1] == best
    assert summary["metrics"]["accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-12)
    before = open_run(tmp_path / "run").read_json("calibration")["before"]  # temperature 1
    assert before["log_loss"] == pytest.approx(best["val_loss"], abs=1e-5)


def test_without_restoring_the_best_the_last_weights_are_kept(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 3), Stage("all", 3, lr=3.0))  # the second makes it worse
    config = replace(config, training=replace(config.training, restore_best=False))
    _, rows = trained(config, tmp_path / "run")
    assert min(r["val_loss"] for r in rows) < rows[-1]["val_loss"] - 0.01
    checkpoint = open_run(tmp_path / "run").load_checkpoint("last")
    assert checkpoint is not None
    model = load_file(tmp_path / "run" / MODEL)
    assert all(torch.equal(model[name], tensor) for name, tensor in checkpoint["model"].items())


def test_the_rate_falls_when_validation_does_not_gain(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 5), Stage(1, 1))
    training = replace(config.training, min_delta=1.0, warmup=0.0)  # nothing ever counts as better
    schedule = ScheduleOptions("performance", patience=1, factor=0.1)
    _, rows = trained(replace(config, training=training, schedule=schedule), tmp_path / "run")
    found = [row["lr/head"] / 5e-3 for row in rows]
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 1])  # and anew in the next stage
    over_run = replace(schedule, scope="run")
    _, rows = trained(replace(config, training=training, schedule=over_run), tmp_path / "over")
    assert [row["lr/head"] / 5e-3 for row in rows][-1] == pytest.approx(0.01)


def test_a_schedule_of_the_run_spans_the_stages(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 2), Stage(1, 2))
    config = replace(
        config,
        training=replace(config.training, warmup=0.0),
        schedule=ScheduleOptions("linear", scope="run", every="epoch"),
    )
    _, rows = trained(config, tmp_path / "run")
    expected = [1 - (epoch + 0.5) / 4 for epoch in range(4)]
    assert [row["lr/head"] / 5e-3 for row in rows] == pytest.approx(expected)


def test_l2_sp_draws_to_the_start_of_the_run(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    free = with_stages(Stage(1, 2), Stage(1, 2))
    drawn = replace(free, regularization=Regularization(l2_sp=1e3))
    models = []
    for name, config in (("start", with_stages(Stage("head", 1))), ("free", free), ("l2", drawn)):
        trained(
            replace(config, training=replace(config.training, weight_decay=0.0)), tmp_path / name
        )
        models.append(load_file(tmp_path / name / MODEL))
    key = max((k for k in models[0] if "blocks.4" in k), key=lambda k: models[0][k].numel())
    start, moved, held = (model[key] for model in models)
    assert 0 < float((held - start).norm()) < 0.9 * float((moved - start).norm())


def test_a_stage_is_skipped_when_the_one_before_did_not_improve(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 1), Stage(2, 1), Stage("all", 1, if_improving=True))
    config = replace(config, training=replace(config.training, min_delta=1.0))
    events: list[Event] = []
    finetune(config, tmp_path / "run", events.append)
    ended = [event for event in events if isinstance(event, StageEnded)]
    assert [(e.name, e.epochs_run, e.reason) for e in ended] == [
        ("top 1", 1, "finished"),
        ("top 2", 1, "finished"),
        ("all", 0, "skipped: the stage before did not improve validation"),
    ]
    always = with_stages(Stage(1, 1), Stage("all", 1, if_improving=True))
    events.clear()
    finetune(always, tmp_path / "always", events.append)  # the first stage improves on nothing
    assert [e.epochs_run for e in events if isinstance(e, StageEnded)] == [1, 1]


def test_a_stage_without_gain_ends_early(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 9), Stage(2, 1))
    config = replace(config, training=replace(config.training, patience=2, min_delta=1.0))
    events: list[Event] = []
    finetune(config, tmp_path / "run", events.append)
    ended = [event for event in events if isinstance(event, StageEnded)]
    assert [(e.epochs_run, e.reason) for e in ended] == [(3, "stopped early"), (1, "finished")]


def test_one_left_over_picture_trains(with_stages: Callable[..., Config], tmp_path: Path) -> None:
    config = with_stages(Stage("all", 1))
    # 18 pictures; at 32 px the last blocks have a single value per channel and picture
    config = replace(config, training=replace(config.training, batch_size=17))
    _, rows = trained(config, tmp_path / "run")
    assert len(rows) == 1


class Accident(Exception):
    """An accident in the middle of a run."""


def resumed_equals(config: Config, out: Path, expected: RunFolder) -> None:
    """Resume an interrupted run and compare it bit for bit with an uninterrupted one."""
    resume(out, silent)
    assert (out / MODEL).read_bytes() == (expected.path / MODEL).read_bytes()
    rows = open_run(out).read_metrics()
    assert without_clock(rows) == without_clock(expected.read_metrics())
    assert open_run(out).read_monitoring() == expected.read_monitoring()


@pytest.fixture
def lively(tiny_config: Config) -> Config:
    """Dropout and mixing, whose random numbers must come back, an average of the
    weights, and a schedule that looks at what validation found."""
    return replace(
        tiny_config,
        head=replace(tiny_config.head, dropout=(0.3,)),
        augment=replace(tiny_config.augment, mixup=0.3),
        averaging=Averaging(ema=0.9),
        schedule=ScheduleOptions("performance", patience=0),
        optimizer=OptimizerOptions("nadam"),
        stages=(Stage(1, 2), Stage(3, 2), Stage("all", 2), Stage(1, 1)),
    )


def test_a_resumed_run_equals_an_uninterrupted_one(
    lively: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    finetune(lively, tmp_path / "whole", events.append)
    whole = open_run(tmp_path / "whole")
    scanned = [i for i, e in enumerate(events) if isinstance(e, Progress) and e.what == "pictures"]
    filling = [i for i, e in enumerate(events) if isinstance(e, Progress) and "trunk" in e.what]
    steps = [i for i, e in enumerate(events) if isinstance(e, Progress) and "epoch" in e.what]
    epochs = [i for i, e in enumerate(events) if isinstance(e, EpochEnded)]
    starts = [i for i, e in enumerate(events) if isinstance(e, StageStarted)]
    ends = [i for i, e in enumerate(events) if isinstance(e, StageEnded)]
    assert (len(epochs), len(starts), len(ends), len(steps)) == (7, 4, 4, 6)
    assert min(filling) > max(scanned)
    picked = [filling[1], epochs[0], ends[0], starts[1], steps[1], ends[2]]
    for number, at in enumerate(picked):
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / f"cache{number}"))
        out, count = tmp_path / f"run{number}", 0

        def show(event: Event, at: int = at) -> None:
            nonlocal count
            count += 1
            if count == at + 1:
                raise KeyboardInterrupt

        with pytest.raises(UserError) as caught:
            finetune(lively, out, show)
        assert caught.value.exit_code == 130
        assert str(out) in caught.value.remedy
        resumed_equals(lively, out, whole)


def test_a_run_that_dies_at_any_checkpoint_can_be_resumed(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, stages=(Stage(1, 1), Stage(3, 2)))
    real, saved = RunFolder.save_checkpoint, [0]
    die_at = [-1]

    def save(self: RunFolder, kind: Any, values: Any) -> None:
        saved[0] += 1
        if 0 < die_at[0] <= saved[0]:  # nothing is written from then on
            raise Accident
        real(self, kind, values)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    monkeypatch.setattr(run_module, "CHECKPOINT_SHARE", math.inf)  # in every epoch
    finetune(config, tmp_path / "whole", silent)
    whole, number = open_run(tmp_path / "whole"), saved[0]
    assert number >= 3 + 3  # after every epoch, and where each later stage starts
    assert [r["best"] for r in whole.read_metrics()][:2] == [1, 1]  # the best is ahead of the last
    for k in range(3, number + 1):
        saved[0], die_at[0] = 0, k
        with pytest.raises(Accident):
            finetune(config, tmp_path / f"run{k}", silent)
        die_at[0] = -1
        resumed_equals(config, tmp_path / f"run{k}", whole)


def test_a_run_may_be_interrupted_more_than_once(lively: Config, tmp_path: Path) -> None:
    finetune(lively, tmp_path / "whole", silent)
    out, left = tmp_path / "run", [1]

    def show(event: Event) -> None:
        if isinstance(event, EpochEnded):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    with pytest.raises(UserError):
        finetune(lively, out, show)
    for _ in range(2):
        left[0] = 1
        with pytest.raises(UserError):
            resume(out, show)
    resumed_equals(lively, out, open_run(tmp_path / "whole"))


@pytest.mark.parametrize("steps", range(1, 17, 3))
def test_a_run_that_is_stopped_within_an_epoch_goes_on_from_that_step(
    steps: int, lively: Config, tmp_path: Path, stopped_after: Callable[..., Any]
) -> None:
    trained(lively, tmp_path / "whole")
    expected = pytest.raises(UserError, match="every finished step is saved")
    with stopped_after(steps, loop), expected as told:
        trained(lively, tmp_path / "run")
    assert told.value.exit_code == 130
    checkpoint = open_run(tmp_path / "run").load_checkpoint("last")
    assert checkpoint is not None
    per_epoch = 3  # batches of six of 18 pictures
    assert checkpoint["state"]["midway"]["tally"]["steps"] == (steps - 1) % per_epoch + 1
    assert len(checkpoint["state"]["rows"]) == (steps - 1) // per_epoch
    resumed_equals(lively, tmp_path / "run", open_run(tmp_path / "whole"))


def test_a_finished_run_resumes_to_the_same(tiny_config: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finetune(tiny_config, out, silent)
    model = (out / MODEL).read_bytes()
    rows = open_run(out).read_metrics()
    events: list[Event] = []
    resume(out, events.append)
    assert (out / MODEL).read_bytes() == model
    assert open_run(out).read_metrics() == rows
    assert not [event for event in events if isinstance(event, EpochEnded)]
    assert "resuming in stage all after epoch 2" in [
        event.text for event in events if isinstance(event, Notice)
    ]


def test_a_killed_process_can_be_resumed(lively: Config, tmp_path: Path) -> None:
    finetune(lively, tmp_path / "whole", silent)
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(to_toml(lively))
    program = (
        "import sys, time, tomllib, pathlib, torch; torch.set_num_threads(1)\n"
        "from transferkit.training import cache_filling\n"
        "cache_filling.EXTRACTION_ROWS = cache_filling.DERIVATION_ROWS = 16\n"
        "from transferkit.verbs.finetune import finetune\n"
        "from transferkit.recipes.reading import load_config\n"
        "config = load_config(tomllib.loads(pathlib.Path(sys.argv[1]).read_text()))\n"
        "finetune(config, pathlib.Path(sys.argv[2]), lambda event: time.sleep(0.005))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(recipe), str(out)]) as process:
        until = time.monotonic() + 60
        while not (out / "checkpoints" / "last.pt").exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (out / MODEL).exists()
    resumed_equals(lively, out, open_run(tmp_path / "whole"))
