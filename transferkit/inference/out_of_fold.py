"""What a run says of every picture by a model that has not seen its fold."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.runs.folder import RunFolder, open_run

FOLDS = "folds"
"""Folder of the runs of the folds, where stages train; a solve judges all folds at once."""


@dataclass(frozen=True)
class OutOfFold:
    """logits: (N, K), at temperature 1. labels, folds (from 0): (N,). paths: N, as predictions.csv.

    Of runs of several folds the paths are absolute.
    """

    logits: Tensor
    labels: Tensor
    folds: Tensor
    paths: tuple[str, ...]

    @property
    def by_fold(self) -> tuple[float, ...]:
        """Accuracy in each fold that has pictures."""
        right = (self.logits.argmax(1) == self.labels).double()
        return tuple(float(right[self.folds == n].mean()) for n in self.folds.unique())

    def figures(self) -> dict[str, float | list[float]]:
        """Return accuracy by fold, their mean and standard deviation, for summary.json."""
        rates = np.array(self.by_fold)
        spread = float(rates.std(ddof=1)) if len(rates) > 1 else 0.0
        right = (self.logits.argmax(1) == self.labels).double()
        return {
            "accuracy": float(right.mean()),
            "pictures": len(self.labels),
            "by_fold": [float(rate) for rate in rates],
            "spread": spread,
        }


def out_of_fold(folder: RunFolder) -> OutOfFold:
    """Return what a run of `--folds` says out of fold. Raises UserError where it has none."""
    own = folder.load_validation()
    if own is not None and "folds" in own:
        parts = [(folder, own["folds"])]
    else:
        inside = sorted((folder.path / FOLDS).glob("[0-9]*/"), key=lambda path: int(path.name))
        parts = [(open_run(path), torch.tensor(int(path.name) - 1)) for path in inside]
    if not parts:
        what = f"{folder.path} was not judged by folds"
        raise UserError(what, "", f"train one that is: finetune --recipe {folder.path} --folds 5")
    found = [_of(part, folds) for part, folds in parts]
    return OutOfFold(
        torch.cat([each.logits for each in found]),
        torch.cat([each.labels for each in found]),
        torch.cat([each.folds for each in found]),
        tuple(path for each in found for path in each.paths),
    )


def _of(folder: RunFolder, folds: Tensor) -> OutOfFold:
    """Return what a finished run says of its validation pictures, which lie in these folds."""
    kept, description = folder.load_validation(), folder.read_description()
    if kept is None:
        raise UserError(f"{folder.path} is not finished", remedy="--resume the run it belongs to")
    paths = tuple(row["path"] for row in folder.read_predictions())
    logits = kept["logits"].double() / float(description["temperature"])
    return OutOfFold(logits, kept["labels"], folds.expand(len(logits)), paths)
