"""The end of a run is checked: it has its best weights, and they answer as the epochs recorded."""

from typing import Any

from transferkit.errors import UserError
from transferkit.training.boundary_cache import weights_digest
from transferkit.training.run import Run

FEW, SHARE = 2, 0.02
"""Pictures, and share of all, that rounding alone may let be answered otherwise in the end.

Epochs may read activations in half precision or compute in bfloat16, the end in full precision.
"""
LOSS, LOSS_SHARE = 0.05, 0.1


def require_best(run: Run) -> None:
    """Raise UserError unless the classifier has the weights of the run's best checkpoint."""
    kept = (run.folder.load_checkpoint("best") or {}).get("model", {})
    tensors = run.classifier.state_dict()
    if weights_digest({n: tensors[n] for n in kept if n in tensors}) != weights_digest(kept):
        raise broken(run, "the run ends with other weights than those of its best epoch", "")


def require_as_recorded(run: Run, accuracy: float, loss: float) -> None:
    """Raise UserError where the end contradicts what was recorded of the weights that are kept.

    accuracy (0..1), loss: of the end, on validation, before any temperature.
    """
    row, count = recorded(run), len(run.material.val)
    other = abs(accuracy - row["val_accuracy"]) * count
    off = abs(loss - row["val_loss"])
    if not (other < max(FEW, SHARE * count) + 0.5 and off <= LOSS + LOSS_SHARE * row["val_loss"]):
        raise broken(
            run,
            "the end of the run contradicts what its epochs recorded",
            f"accuracy {accuracy:.1%}, loss {loss:.4f}; recorded were "
            f"{row['val_accuracy']:.1%}, {row['val_loss']:.4f}",
        )


def recorded(run: Run) -> dict[str, Any]:
    """Return what validation said of the weights that the run ends with, when they were found."""
    if run.interpolation:
        return next(row for row in run.interpolation if row["share"] == run.interpolated)
    stages = run.plan.stages
    best = [row for row in run.state.rows if row["best"]]
    trained = [row for row in run.state.rows if not stages[row["stage"]].solves]
    if run.settings.restore_best or (best and stages[best[-1]["stage"]].solves):
        return best[-1]
    return trained[-1]


def broken(run: Run, what: str, where: str) -> UserError:
    """Return what to tell of a run that must not be trusted."""
    remedy = f"start one like it: transferkit finetune --recipe {run.folder.path}"
    return UserError(what, where, f"its checkpoints do not fit together; {remedy}")
