"""Checkpoints of a run: what is saved after every epoch, and how a run gets back to it."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from transferkit import processes
from transferkit.errors import UserError
from transferkit.foreign_files import ODD
from transferkit.run_folder import CheckpointKind
from transferkit.training.run import Run, RunState
from transferkit.training.updates import Updater


def trained_tensors(run: Run) -> dict[str, Tensor]:
    """Return the tensors that any stage up to the current one may have changed."""
    return tensors_above(run, min(s.boundary for s in run.plan.stages[: run.state.stage + 1]))


def tensors_above(run: Run, boundary: int) -> dict[str, Tensor]:
    """Return copies of the classifier's tensors from a boundary of the plan upwards."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in run.classifier.state_dict().items()
        if run.group_of(name) >= boundary
    }


def save_best(run: Run) -> None:
    """Write the weights as they are as the best so far."""
    processes.from_first(run.folder.save_checkpoint, "best", {"model": trained_tensors(run)})


def save_last(run: Run, updater: Updater | None = None) -> None:
    """Write where the run stands, after all else, so that it is never ahead of it."""
    run.state.seconds = run.watch.read()
    values = {
        "model": trained_tensors(run),
        "updater": updater and updater.state_dict(),
        "state": asdict(run.state),
    }
    processes.from_first(run.folder.save_checkpoint, "last", values)


def save_start(run: Run) -> None:
    """Save where a stage starts: a later one may change more than the checkpoints hold so far.

    From here on the run continues from these weights, not from the best checkpoint, which may
    already be of this stage's first epoch when the run is killed before that one's `last`.
    """
    save_best(run)
    save_last(run)


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


def restore(run: Run, kind: CheckpointKind) -> dict[str, Any]:
    """Put a checkpoint's tensors into the classifier and return the checkpoint."""
    checkpoint = run.folder.load_checkpoint(kind)
    if checkpoint is None:
        raise UserError(f"{run.folder.path} has no {kind} checkpoint", "", "start the run again")
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
    try:
        run.state = RunState.from_dict(checkpoint["state"])
        if not 0 <= run.state.stage <= len(run.plan.stages) or run.state.epoch < 0:
            raise ValueError(f"stage {run.state.stage}, epoch {run.state.epoch}")
        run.watch.add(run.state.seconds)
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
