"""Checkpoints of a run: what is kept after every epoch, and how a run gets back to it."""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from transferkit import processes
from transferkit.errors import UserError
from transferkit.files.foreign_files import ODD
from transferkit.runs.folder import CheckpointKind
from transferkit.training.budget import Budget
from transferkit.training.gradients import whole
from transferkit.training.run import Run, RunState
from transferkit.training.updates import Updater

KINDS: tuple[CheckpointKind, ...] = ("best", "last")
"""In the order in which they are written."""


def trained_tensors(run: Run) -> dict[str, Tensor]:
    """Return the tensors that any stage up to the current one may have changed."""
    return tensors_above(run, min(s.boundary for s in run.plan.stages[: run.state.stage + 1]))


def tensors_above(run: Run, boundary: int) -> dict[str, Tensor]:
    """Return copies of the classifier's tensors from a boundary of the plan upwards."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in run.classifier.state_dict().items()
        if run.parts.column_of(name) >= boundary
    }


def save_best(run: Run) -> None:
    """Keep the weights as they are as the best so far; written with the next `save_last`."""
    if processes.is_first():
        run.unsaved.checkpoints["best"] = {"model": trained_tensors(run)}


def save_last(
    run: Run, updater: Updater | None = None, epoch_start: dict[str, Any] | None = None
) -> None:
    """Keep where the run stands, after all else, and write what is kept if that is due.

    A run that is killed before it is due does the epochs since then again, to the same bits.
    epoch_start: of a run that stands within an epoch, see `epoch_start`.
    """
    if not processes.is_first():
        return
    run.state.seconds = run.watch.read()
    run.state.budget = None if run.budget is None else run.budget.to_dict()
    state = updater and updater.state_dict()
    run.unsaved.checkpoints["last"] = {
        "model": trained_tensors(run),
        "updater": state if run.unsaved.is_due else copied(state),
        "state": asdict(run.state),
        "epoch_start": epoch_start,
    }
    if run.unsaved.is_due:
        write_unsaved(run)


def write_unsaved(run: Run) -> None:
    """Write the rows of all epochs, the best weights and then where the run stands, if kept.

    In this order, so that the last checkpoint is never ahead of the others.
    """
    checkpoints = run.unsaved.checkpoints
    if not checkpoints or not processes.is_first():
        return
    started = time.monotonic()
    run.folder.write_metrics(run.state.rows)
    run.folder.write_monitoring(run.state.monitored)
    for kind in KINDS:
        if kind in checkpoints:
            run.folder.save_checkpoint(kind, checkpoints[kind])
    run.unsaved.written(started)


def copied(values: Any) -> Any:
    """Return nested dicts and lists with copies of their tensors, whole and on the CPU."""
    if isinstance(values, Tensor):
        return whole(values.detach()).cpu().clone()
    if isinstance(values, dict):
        return {name: copied(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(copied(value) for value in values)
    return values


def save_start(run: Run) -> None:
    """Save where a stage starts: a later one may change more than the checkpoints hold so far.

    From here on the run continues from these weights, not from the best checkpoint, which may
    already be of this stage's first epoch when the run is killed before that one's `last`.
    """
    save_best(run)
    save_last(run)
    processes.from_first(write_unsaved, run)


def first_unfreezing(run: Run) -> bool:
    """Whether the current stage is the first that trains more than the head."""
    top = len(run.plan.groups)
    stages = run.plan.stages
    return stages[run.state.stage].boundary < top and all(
        stage.boundary == top for stage in stages[: run.state.stage]
    )


def save_before(run: Run) -> None:
    """Keep the weights that later stages may change, as they are before any block is unfrozen."""
    tensors = tensors_above(run, min(stage.boundary for stage in run.plan.stages))
    processes.from_first(run.folder.save_checkpoint, "start", {"model": tensors})


def epoch_start(run: Run) -> dict[str, Any] | None:
    """Return the checkpoint of where the current epoch starts, for a run that may go back to it.

    It goes into each one that is written within the epoch, which takes its place.
    """
    if run.settings.on_divergence != "rewind":
        return None
    last = run.unsaved.checkpoints.get("last") or run.folder.load_checkpoint("last") or {}
    return last.get("epoch_start") or last


def restore(run: Run, kind: CheckpointKind) -> dict[str, Any]:
    """Put a checkpoint's tensors into the classifier and return the checkpoint."""
    processes.from_first(write_unsaved, run)
    checkpoint = run.folder.load_checkpoint(kind)
    if checkpoint is None:
        raise UserError(f"{run.folder.path} has no {kind} checkpoint", "", "start the run again")
    return take(run, kind, checkpoint)


def restore_epoch(run: Run) -> dict[str, Any]:
    """Put the tensors that the current epoch started from back, and return their checkpoint."""
    last = restore(run, "last")
    return take(run, "last", last.get("epoch_start") or last)


def take(run: Run, kind: CheckpointKind, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Put the tensors of what was read into the classifier and return it."""
    try:
        run.classifier.load_state_dict(checkpoint["model"], strict=False)
    except (*ODD, RuntimeError) as error:  # of other shapes
        raise unfit(run, kind, error) from error
    return checkpoint


def unfit(run: Run, kind: CheckpointKind, error: Exception) -> UserError:
    """Return what to tell where a checkpoint is whole, but not of this run."""
    return UserError(
        f"the {kind} checkpoint in {run.folder.path} is not of this run",
        f"{type(error).__name__}: {str(error)[:200]}",
        "the folder was changed or damaged: restore it from a copy, or start the run again",
    )


def continue_run(run: Run) -> bool:
    """Put a run where its last checkpoint stands; False when there is none yet.

    Weights come back before any cache is opened, because caches depend on them.
    """
    if run.folder.load_checkpoint("last") is None:
        return False
    checkpoint = restore(run, "last")
    if "updater" not in checkpoint:
        raise UserError(
            f"the run in {run.folder.path} was started by an early release of transferkit",
            "its checkpoint lacks what training needs today to go on to the same weights",
            f"start one like it: transferkit finetune --recipe {run.folder.path}",
        )
    try:
        run.state = RunState.from_dict(checkpoint["state"])
        if not 0 <= run.state.stage <= len(run.plan.stages) or run.state.epoch < 0:
            raise ValueError(f"stage {run.state.stage}, epoch {run.state.epoch}")
        run.watch.add(run.state.seconds)
        if run.budget is not None and run.state.budget is not None:
            run.budget = Budget.from_dict(run.state.budget)
        run.resumed = checkpoint if checkpoint["updater"] else None
    except ODD as error:
        raise unfit(run, "last", error) from error
    return True


def continue_updater(run: Run, updater: Updater) -> None:
    """Give the updater of the stage that a resumed run is in what it had learned, once."""
    if run.resumed is None:
        return
    try:
        updater.load_state_dict(run.resumed["updater"])
    except (*ODD, RuntimeError) as error:
        raise unfit(run, "last", error) from error
    run.resumed = None
