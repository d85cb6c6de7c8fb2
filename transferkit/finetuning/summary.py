"""What a finished run has to say about itself, as data: summary.json and the closing table."""

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transferkit.evaluation.metrics import Evaluation, WeakClass
from transferkit.files.strict_json import to_plain
from transferkit.finetuning.diagnosis import diagnose
from transferkit.inference.out_of_fold import out_of_fold
from transferkit.runs.folder import PRETRAINING, RunFolder
from transferkit.stopwatch import by_part
from transferkit.training.loop import NO_TIME, NOT_IMPROVED
from transferkit.training.run import Run, under_l1
from transferkit.training.solving import UNCHANGED
from transferkit.training.stages import default_stages


@dataclass(frozen=True)
class StageSummary:
    """How a stage went.

    epochs: how many ran. seconds: whole stage, with its caches and validation.
    seconds_per_epoch: of training alone, mean; pictures_per_second: training pictures in the same.
    best_accuracy: best on validation, 0..1. reason: "finished", "stopped early", "skipped: ...";
    "diverged", "not reached" of a run that stopped.
    clipped: share of the steps whose gradients were clipped, 0..1; None without clipping.
    parts: seconds by part of the work ("pictures", "trunk", "training", ...).
    """

    name: str
    epochs: int
    seconds: float
    seconds_per_epoch: float
    pictures_per_second: float
    cached: bool
    best_accuracy: float
    reason: str = "finished"
    clipped: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """A whole run. metrics: of the best weights on validation (accuracy, log_loss, ...).

    head_only_accuracy: what the head-only stage reached, None when there was none.
    seconds: from the start of the command, and of those before it that it resumed. parts: the same
    by part of the work, stages included. files: what lies where.
    wise_ft: share of the way from before unfreezing to after it, None without interpolation.
    stopped: why the run ended before its plan, "" where it did not.
    leave_one_out: of the first solve, see `left_out_figures`; None without one.
    pretraining: summary.json of the run inside, where the plan began with one.
    folds: accuracy out of fold, see `OutOfFold.figures`; None without folds.
    zero_weights: how many of the weights under L1 are exactly zero, and of how many; None without.
    diagnosis: what went wrong inside the network, and what to try; empty when nothing was seen.
    """

    run: Path
    backbone: str
    metrics: dict[str, float]
    head_only_accuracy: float | None
    stages: tuple[StageSummary, ...]
    classes: int
    train_pictures: int
    val_pictures: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    weak_classes: tuple[WeakClass, ...] = ()
    files: dict[str, Path] = field(default_factory=dict)
    diagnosis: tuple[str, ...] = ()
    wise_ft: float | None = None
    stopped: str = ""
    leave_one_out: dict[str, Any] | None = None
    zero_weights: tuple[int, int] | None = None
    folds: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them: paths as text, NaN as None."""
        return {name: to_plain(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class PlanRow:
    """A stage before it runs, as `transferkit plan` shows it.

    lr_by_group: peak learning rate of every block group from the stem to the head; 0 is frozen.
    epochs: at most; the last one of a budget of time may be in part.
    cache_bytes: what the stage keeps on disk, 0 when it trains live. seconds: expected, caches
    included; None when it was not measured.
    """

    name: str
    epochs: float
    lr_by_group: dict[str, float]
    trainable_parameters: int
    total_parameters: int
    cache_bytes: int
    seconds: float | None = None
    if_improving: bool = False


def summarize(run: Run, evaluation: Evaluation) -> RunSummary:
    """Put together the closing table of a run from its rows, so that a resumed run has it too."""
    material, seconds = run.material, run.watch.read()
    stages = tuple(
        stage_summary(run, number, len(material.train), seconds.get(number, {}))
        for number in range(len(run.plan.stages))
    )
    head_only = [
        summary.best_accuracy
        for planned, summary in zip(run.plan.stages, stages, strict=True)
        if planned.boundary == len(run.plan.groups) and summary.epochs and not planned.solves
    ]
    return RunSummary(
        run=run.folder.path,
        backbone=run.parts.backbone.name,
        metrics=evaluation.headline,
        head_only_accuracy=head_only[0] if head_only else None,
        stages=stages,
        classes=len(run.parts.index.classes),
        train_pictures=len(material.train),
        val_pictures=len(material.val),
        seconds=sum(by_part(seconds).values()),
        parts=by_part(seconds),
        weak_classes=evaluation.weakest(),
        files=run.folder.files,
        wise_ft=run.interpolated,
        stopped=run.stopped,
        leave_one_out=run.state.left_out,
        zero_weights=zero_weights(run),
        pretraining=pretraining_of(run.folder),
        folds=None if run.parts.index.folds is None else out_of_fold(run.folder).figures(),
        diagnosis=(
            *run.state.divergences,
            *diagnose(
                run.state.monitored,
                run.state.rows,
                len(run.parts.index.classes),
                run.parts.config,
                run.folder.path,
            ),
        ),
    )


def pretraining_of(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the pretraining that a run began with says of itself; None without one."""
    path = folder.path / PRETRAINING
    return RunFolder(path).read_json("summary") if path.is_dir() else None


def zero_weights(run: Run) -> tuple[int, int] | None:
    """Return how many of the weights under L1 are zero, and of how many; None without L1."""
    weights = [run.model.get_parameter(name) for name in under_l1(run)]
    if not weights:
        return None
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def stage_summary(
    run: Run, number: int, num_pictures: int, parts: dict[str, float]
) -> StageSummary:
    """Sum up the epochs of one stage of the plan. parts: what its time went into."""
    rows: list[dict[str, Any]] = [row for row in run.state.rows if row["stage"] == number]
    stage = run.plan.stages[number]
    train_s = sum(row["seconds"] for row in rows)
    epochs = run.epochs[number]
    trained = min(epochs, len(rows))  # the last epoch of a budget may be run in part
    if run.stopped and number >= run.state.stage:
        reason = "diverged" if number == run.state.stage else "not reached"
    elif not rows:
        why = UNCHANGED if stage.solves else NO_TIME if run.budget else NOT_IMPROVED
        reason = f"skipped: {why}"
    else:
        reason = "finished" if len(rows) >= epochs else "stopped early"
    return StageSummary(
        name=stage.name,
        epochs=len(rows),
        seconds=sum(parts.values()),
        seconds_per_epoch=train_s / trained if rows else 0.0,
        pictures_per_second=num_pictures * trained / train_s if train_s else 0.0,
        cached=bool(rows and rows[0]["cached"]),
        best_accuracy=max((row["val_accuracy"] for row in rows), default=float("nan")),
        reason=reason,
        clipped=sum(row["clipped"] for row in rows) / len(rows)
        if rows and "clipped" in rows[0]
        else None,
        parts=parts,
    )


def going_on(run: Run) -> str:
    """Return the command that goes on where a run has diverged, at half the rate of its stage."""
    config, first = run.parts.config, run.state.stage
    stages = config.stages or default_stages(config, len(run.plan.groups))
    parts = [
        replace(stage, lr=planned.lr / 2).text
        for stage, planned in zip(stages[first:], run.plan.stages[first:], strict=True)
    ]
    if run.plan.stages[first].boundary < len(run.plan.groups):  # the new run's head knows nothing
        parts.insert(0, f"head:{config.training.head_epochs}")
    parts[0] = parts[0].removesuffix("?")
    data = [] if config.data.path is None else [str(config.data.path)]
    data += [] if config.data.manifest is None else ["--manifest", str(config.data.manifest)]
    if config.data.corrections is not None:
        data += ["--corrections", str(config.data.corrections)]
    plan = ["--from", str(run.folder.path), "--stages", ",".join(parts)]
    return shlex.join(["transferkit", "finetune", *data, *plan])
