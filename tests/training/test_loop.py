"""`fit` over tiny runs: stages, epochs, steps, the best weights, and going on after a stop.

The last tests are of whole runs, where what surrounds `fit` matters.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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
    Show,
    StageEnded,
    StageStarted,
    drain,
    silent,
)
from transferkit.finetuning.preparation import prepare
from transferkit.runs.folder import RunFolder, open_run
from transferkit.stopping import Stopped
from transferkit.stopwatch import Stopwatch, by_part
from transferkit.training import cache_filling, loop
from transferkit.training import run as run_module
from transferkit.training.cache_choice import choose_base
from transferkit.training.checkpoints import continue_run, write_unsaved
from transferkit.training.loop import fit
from transferkit.training.picks import batches
from transferkit.training.run import Run, RunState, make_run
from transferkit.training.schedules import cosine, with_warmup
from transferkit.training.supervised import Objective
from transferkit.training.updates import Updater
from transferkit.verbs.finetune import finetune, resume

MODEL = "model.safetensors"


@pytest.fixture(autouse=True, scope="module")
def _small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_filling, "EXTRACTION_ROWS", 16)
        patch.setattr(cache_filling, "DERIVATION_ROWS", 16)
        yield


def fitted(config: Config, out: Path, show: Show = silent) -> Run:
    """Run `fit` from where the folder's last checkpoint stands, if it has one."""
    out.mkdir(exist_ok=True)
    parts = prepare(config, silent)
    run = make_run(parts, RunFolder(out))
    with closing(parts.handles):
        try:
            continue_run(run)
            run.state.base, _ = choose_base(parts, run.stages, run.state.base)
            drain(fit(run), show)
        finally:
            write_unsaved(run)
    return run


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Return the rows of metrics.csv without the clock."""
    return [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in run.state.rows]


def weights(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.classifier.state_dict().items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def require_equal(ours: Run, theirs: Run) -> None:
    """Compare two runs bit for bit."""
    assert equal(weights(ours), weights(theirs))
    assert rows_of(ours) == rows_of(theirs)
    assert ours.state.monitored == theirs.state.monitored


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


def test_stages_are_entered_in_order_and_every_batch_is_one_step(
    with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_stages(Stage("solve", 1), Stage(1, 2), Stage("all", 1), Stage("solve", 1))
    config = replace(config, training=replace(config.training, batch_size=4))
    happened: list[Any] = []
    step, loss = Updater.step, Objective.loss

    def stepped(self: Updater, monitor: Any) -> bool:
        happened.append("step")
        return step(self, monitor)

    def summed(self: Objective, network: Any, inputs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        happened.append(len(inputs))
        return loss(self, network, inputs, *rest)

    monkeypatch.setattr(Updater, "step", stepped)
    monkeypatch.setattr(Objective, "loss", summed)

    def show(event: Event) -> None:
        if isinstance(event, StageStarted | EpochEnded | StageEnded):
            happened.append((type(event), event.stage))

    run = fitted(config, tmp_path / "run", show)
    epoch = [4, "step", 4, "step", 4, "step", 4, "step", 2, "step"]  # 18 pictures

    def stage(number: int, *epochs: list[Any]) -> list[Any]:
        each = [[*steps, (EpochEnded, number)] for steps in epochs]
        return [(StageStarted, number), *itertools.chain(*each), (StageEnded, number)]

    assert happened == [
        *stage(0, []), *stage(1, epoch, epoch), *stage(2, epoch), *stage(3, [])
    ]  # fmt: skip
    assert (run.state.stage, run.state.epoch) == (4, 0)


def test_events_rows_and_learning_rates(tiny_config: Config, tmp_path: Path) -> None:
    events: list[Event] = []
    run = fitted(tiny_config, tmp_path / "run", events.append)
    seen = [e for e in events if isinstance(e, StageStarted | EpochEnded | StageEnded)]
    one = [StageStarted, EpochEnded, EpochEnded, StageEnded]
    assert [type(e) for e in seen] == one * 3
    assert [e.name for e in seen if isinstance(e, StageStarted)] == ["top 1", "top 3", "all"]
    assert [e.cached for e in seen if isinstance(e, StageStarted)] == [True, True, False]
    trainable = [e.trainable_parameters for e in seen if isinstance(e, StageStarted)]
    assert trainable == sorted(trainable)
    assert trainable[-1] == seen[0].total_parameters  # type: ignore[union-attr]
    rows = run.state.rows
    assert [(r["stage"], r["epoch"], r["cached"]) for r in rows] == [
        (0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1), (2, 1, 0), (2, 2, 0)
    ]  # fmt: skip
    # 18 pictures in batches of 6: the middle of the last of 3 steps, in 2 epochs
    for r in rows:
        factor = with_warmup(cosine(ScheduleOptions()), (r["epoch"] * 3 - 0.5) / 6, 0.1)
        assert r["lr/head"] == pytest.approx(5e-3 * factor)
        assert r["lr/blocks.4"] == pytest.approx(5e-3 * factor * 0.5)
    assert rows[5]["lr/stem"] == pytest.approx(rows[5]["lr/head"] * 0.5**6)
    assert "lr/stem" not in rows[0]


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
    runs = fitted(config, tmp_path / "cached"), fitted(live, tmp_path / "live")
    cached_rows, live_rows = (run.state.rows for run in runs)
    assert [r["cached"] for r in cached_rows] == [1] * 7
    assert [r["cached"] for r in live_rows] == [0] * 7
    for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        cached_values, live_values = (
            [r[column] for r in rows] for rows in (cached_rows, live_rows)
        )
        assert cached_values == pytest.approx(live_values, abs=1e-5), column
    losses = [r["train_loss"] for r in cached_rows]
    assert min(losses) < losses[0] - 0.05  # something was learned
    live_weights = weights(runs[1])
    for name, tensor in weights(runs[0]).items():
        assert torch.allclose(tensor.float(), live_weights[name].float(), atol=2e-5), name


@pytest.mark.parametrize("views", [0, 3])
def test_the_first_epochs_see_clean_views_before_the_varied_ones_are_computed(
    views: int, with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_stages(Stage(1, 13), Stage(1, 13))
    config = replace(config, augment=replace(config.augment, level="light", views=views))
    seen: list[set[int]] = []
    real = loop.epoch_picks

    def picks(*arguments: Any) -> Any:
        picked = real(*arguments)
        seen.append({int(v) for _, numbers in picked for v in numbers})
        return picked

    monkeypatch.setattr(loop, "epoch_picks", picks)
    events: list[Event] = []
    fitted(config, tmp_path / "run", events.append)
    assert seen[:2] == [{0}] * 2
    if views:
        assert all(len(numbers) > 0 and max(numbers) > 0 for numbers in seen[2:])
    filled = [n for n, e in enumerate(events) if isinstance(e, Progress) and "trunk" in e.what]
    ended = [n for n, e in enumerate(events) if isinstance(e, EpochEnded)]
    after = [n for n in filled if n > ended[1]]
    assert len([n for n in filled if n < ended[0]]) > 0
    assert bool(after) == bool(views)
    assert all(n < ended[2] for n in after)


def test_same_seed_same_bits(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(
        tiny_config,
        head=replace(tiny_config.head, dropout=(0.3,), layers=(8,)),
        augment=replace(tiny_config.augment, mixup=0.3, cutmix=0.3),
    )
    models = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        each = replace(config, training=replace(config.training, seed=seed))
        models.append(weights(fitted(each, tmp_path / name)))
        torch.rand(5)  # whatever the global generator's state
    assert equal(models[0], models[1])
    assert not equal(models[0], models[2])


def test_a_stage_that_makes_it_worse_leaves_no_trace(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    good = (Stage(1, 4), Stage(2, 2))
    worse = fitted(with_stages(*good, Stage("all", 2, lr=30.0)), tmp_path / "worse")
    rows = worse.state.rows
    best = max(rows, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert best["stage"] < 2
    assert min(r["val_loss"] for r in rows if r["stage"] == 2) > best["val_loss"]
    assert equal(weights(worse), weights(fitted(with_stages(*good), tmp_path / "good")))


@pytest.mark.parametrize("order", [(1, "all"), ("all", 1), (3, 1)])
def test_fit_ends_with_the_weights_of_the_best_epoch(
    order: tuple[Any, ...], with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    good = (Stage(what, 2) for what in order)
    config = with_stages(*good, Stage("all", 1, lr=9.0))  # the last makes it worse
    parts, kept = prepare(config, silent), []
    run = make_run(parts, RunFolder(tmp_path))
    run.state.base = None  # live
    for event in fit(run):
        if isinstance(event, EpochEnded) and event.is_best:
            kept.append(weights(run))
    best = max(run.state.rows, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert [r for r in run.state.rows if r["best"]][-1] == best != run.state.rows[-1]
    assert equal(weights(run), kept[-1])
    material = run.material
    images = np.concatenate([material.make((int(p), (0,))) for p in material.val])
    with torch.no_grad():
        logits = run.classifier.eval()(torch.from_numpy(images))
    labels = torch.from_numpy(material.index.labels[material.val])
    assert (logits.argmax(1) == labels).double().mean() == best["val_accuracy"]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(best["val_loss"], abs=1e-5)


def test_without_restoring_the_best_the_last_weights_are_kept(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 3), Stage("all", 3, lr=3.0))  # the second makes it worse
    config = replace(config, training=replace(config.training, restore_best=False))
    run = fitted(config, tmp_path / "run")
    assert min(r["val_loss"] for r in run.state.rows) < run.state.rows[-1]["val_loss"] - 0.01
    last = run.folder.load_checkpoint("last")
    assert last is not None
    assert equal(last["model"], {name: weights(run)[name] for name in last["model"]})


def test_the_rate_falls_when_validation_does_not_gain(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 5), Stage(1, 1))
    training = replace(config.training, min_delta=1.0, warmup=0.0)  # nothing ever counts as better
    factors = []
    for scope in ("stage", "run"):
        schedule = ScheduleOptions("performance", patience=1, factor=0.1, scope=scope)  # type: ignore[arg-type]
        run = fitted(replace(config, training=training, schedule=schedule), tmp_path / scope)
        factors.append([row["lr/head"] / 5e-3 for row in run.state.rows])
    assert factors[0] == pytest.approx([1, 1, 1, 0.1, 0.1, 1])  # and anew in the next stage
    assert factors[1][-1] == pytest.approx(0.01)


def test_a_schedule_of_the_run_spans_the_stages(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 2), Stage(1, 2))
    config = replace(
        config,
        training=replace(config.training, warmup=0.0),
        schedule=ScheduleOptions("linear", scope="run", every="epoch"),
    )
    run = fitted(config, tmp_path / "run")
    expected = [1 - (epoch + 0.5) / 4 for epoch in range(4)]
    assert [row["lr/head"] / 5e-3 for row in run.state.rows] == pytest.approx(expected)


def test_l2_sp_draws_to_the_start_of_the_run(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    free = with_stages(Stage(1, 2), Stage(1, 2))
    drawn = replace(free, regularization=Regularization(l2_sp=1e3))
    models = []
    for name, config in (("start", with_stages(Stage("head", 1))), ("free", free), ("l2", drawn)):
        config = replace(config, training=replace(config.training, weight_decay=0.0))
        models.append(weights(fitted(config, tmp_path / name)))
    key = max((k for k in models[0] if "blocks.4" in k), key=lambda k: models[0][k].numel())
    start, moved, held = (model[key] for model in models)
    assert 0 < float((held - start).norm()) < 0.9 * float((moved - start).norm())


def test_a_stage_is_skipped_when_the_one_before_did_not_improve(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 1), Stage(2, 1), Stage("all", 1, if_improving=True))
    config = replace(config, training=replace(config.training, min_delta=1.0))
    events: list[Event] = []
    fitted(config, tmp_path / "run", events.append)
    ended = [event for event in events if isinstance(event, StageEnded)]
    assert [(e.name, e.epochs_run, e.reason) for e in ended] == [
        ("top 1", 1, "finished"),
        ("top 2", 1, "finished"),
        ("all", 0, "skipped: the stage before did not improve validation"),
    ]
    always = with_stages(Stage(1, 1), Stage("all", 1, if_improving=True))
    events.clear()
    fitted(always, tmp_path / "always", events.append)  # the first stage improves on nothing
    assert [e.epochs_run for e in events if isinstance(e, StageEnded)] == [1, 1]


def test_a_stage_without_gain_ends_early(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    config = with_stages(Stage(1, 9), Stage(2, 1))
    config = replace(config, training=replace(config.training, patience=2, min_delta=1.0))
    events: list[Event] = []
    fitted(config, tmp_path / "run", events.append)
    ended = [event for event in events if isinstance(event, StageEnded)]
    assert [(e.epochs_run, e.reason) for e in ended] == [(3, "stopped early"), (1, "finished")]


def test_one_left_over_picture_trains(with_stages: Callable[..., Config], tmp_path: Path) -> None:
    config = with_stages(Stage("all", 1))
    # 18 pictures; at 32 px the last blocks have a single value per channel and picture
    config = replace(config, training=replace(config.training, batch_size=17))
    assert len(fitted(config, tmp_path / "run").state.rows) == 1


class Accident(Exception):
    """An accident in the middle of a run."""


@pytest.fixture(scope="session")
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
    whole = fitted(lively, tmp_path / "whole", events.append)
    filling = [i for i, e in enumerate(events) if isinstance(e, Progress) and "trunk" in e.what]
    steps = [i for i, e in enumerate(events) if isinstance(e, Progress) and "epoch" in e.what]
    epochs = [i for i, e in enumerate(events) if isinstance(e, EpochEnded)]
    starts = [i for i, e in enumerate(events) if isinstance(e, StageStarted)]
    ends = [i for i, e in enumerate(events) if isinstance(e, StageEnded)]
    assert (len(epochs), len(starts), len(ends), len(steps)) == (7, 4, 4, 6)
    for number, at in enumerate([filling[1], epochs[0], ends[0], starts[1], steps[1], ends[2]]):
        monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / f"cache{number}"))
        out, count = tmp_path / f"run{number}", itertools.count()

        def show(event: Event, at: int = at, count: Any = count) -> None:
            if next(count) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted(lively, out, show)
        require_equal(fitted(lively, out), whole)


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
    whole = fitted(config, tmp_path / "whole")
    number = saved[0]
    assert number >= 3 + 3  # after every epoch, and where each later stage starts
    assert [r["best"] for r in whole.state.rows][:2] == [1, 1]  # the best is ahead of the last
    for k in range(3, number + 1):
        saved[0], die_at[0] = 0, k
        with pytest.raises(Accident):
            fitted(config, tmp_path / f"run{k}")
        die_at[0] = -1
        require_equal(fitted(config, tmp_path / f"run{k}"), whole)


@pytest.fixture(scope="module")
def whole_lively(lively: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of `lively` that nothing interrupts."""
    root = tmp_path_factory.mktemp("lively")
    return fitted(replace(lively, cache=replace(lively.cache, dir=root / "cache")), root / "run")


@pytest.mark.parametrize("steps", range(1, 17, 3))
def test_a_run_that_is_stopped_within_an_epoch_goes_on_from_that_step(
    steps: int,
    lively: Config,
    whole_lively: Run,
    tmp_path: Path,
    stopped_after: Callable[..., Any],
) -> None:
    with stopped_after(steps, loop), pytest.raises(Stopped):
        fitted(lively, tmp_path / "run")
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint("last")
    assert checkpoint is not None
    per_epoch = 3  # batches of six of 18 pictures
    assert checkpoint["state"]["midway"]["tally"]["steps"] == (steps - 1) % per_epoch + 1
    assert len(checkpoint["state"]["rows"]) == (steps - 1) // per_epoch
    require_equal(fitted(lively, tmp_path / "run"), whole_lively)


@pytest.mark.usefixtures("without_plots")
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


@pytest.mark.usefixtures("without_plots")
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


@pytest.mark.usefixtures("without_plots")
def test_a_whole_run_may_be_interrupted_more_than_once(lively: Config, tmp_path: Path) -> None:
    finetune(lively, tmp_path / "whole", silent)
    out, left = tmp_path / "run", [1]

    def show(event: Event) -> None:
        if isinstance(event, EpochEnded):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

    with pytest.raises(UserError) as caught:
        finetune(lively, out, show)
    assert caught.value.exit_code == 130
    assert str(out) in caught.value.remedy
    for _ in range(2):
        left[0] = 1
        with pytest.raises(UserError, match="every finished epoch is saved"):
            resume(out, show)
    resume(out, silent)
    assert (out / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    ours, theirs = (open_run(path).read_metrics() for path in (out, tmp_path / "whole"))
    assert [r["val_loss"] for r in ours] == [r["val_loss"] for r in theirs]
    calibration = open_run(out).read_json("calibration")["before"]  # temperature 1
    best = [r for r in ours if r["best"]][-1]
    assert calibration["log_loss"] == pytest.approx(best["val_loss"], abs=1e-5)


@pytest.mark.usefixtures("without_plots")
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
