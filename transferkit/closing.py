"""What a finished run says about itself: from rows, timings and metrics to a RunSummary."""

from typing import Any

from transferkit.evaluation.metrics import Evaluation
from transferkit.runs.folder import RunFolder
from transferkit.session import Session
from transferkit.stopwatch import by_part
from transferkit.training.diagnosis import diagnose
from transferkit.training.loop import NO_TIME, NOT_IMPROVED
from transferkit.training.run import Run
from transferkit.training.summary import RunSummary, StageSummary


def summarize(session: Session, run: Run, folder: RunFolder, evaluation: Evaluation) -> RunSummary:
    """Put together the closing table of a run from its rows, so that a resumed run has it too."""
    material = session.sources.material
    seconds = session.watch.read()
    stages = tuple(
        stage_summary(run, number, len(material.train), seconds.get(number, {}))
        for number in range(len(run.plan.stages))
    )
    head_only = [
        summary.best_accuracy
        for planned, summary in zip(run.plan.stages, stages, strict=True)
        if planned.boundary == len(run.plan.groups) and summary.epochs
    ]
    return RunSummary(
        run=folder.path,
        backbone=session.backbone.name,
        metrics=evaluation.headline,
        head_only_accuracy=head_only[0] if head_only else None,
        stages=stages,
        classes=len(session.index.classes),
        train_pictures=len(material.train),
        val_pictures=len(material.val),
        seconds=sum(by_part(seconds).values()),
        parts=by_part(seconds),
        weak_classes=evaluation.weakest(),
        files=folder.files,
        wise_ft=run.interpolated,
        diagnosis=(
            *run.state.divergences,
            *diagnose(run.state.monitored, run.state.rows, len(session.index.classes)),
        ),
    )


def stage_summary(
    run: Run, number: int, num_pictures: int, parts: dict[str, float]
) -> StageSummary:
    """Sum up the epochs of one stage of the plan. parts: what its time went into."""
    rows: list[dict[str, Any]] = [row for row in run.state.rows if row["stage"] == number]
    stage = run.plan.stages[number]
    train_s = sum(row["seconds"] for row in rows)
    epochs = run.epochs[number]
    trained = min(epochs, len(rows))  # the last epoch of a budget may be run in part
    if not rows:
        reason = f"skipped: {NO_TIME if run.budget else NOT_IMPROVED}"
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
