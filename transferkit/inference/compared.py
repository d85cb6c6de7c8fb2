"""Whether the pictures of `predict` look different from those that the run was validated on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.closed_form.shift import MOST_COMPARED, Sample, Shift, compare_samples
from transferkit.files.foreign_files import understood
from transferkit.inference.members import Member


@dataclass
class Compared:
    """A random sample of the pictures so far, in bounded memory, and a run's validation pictures.

    Not its training pictures: a backbone that was trained on them tells them from all others.
    """

    member: Member
    seed: int = 0
    seen: int = 0
    _kept: list[tuple[Path, int, Tensor]] = field(default_factory=list)

    def add(self, files: Sequence[Path], classes: np.ndarray, features: Tensor) -> None:
        """Add pictures with the classes (N,) and features (N, D) that were predicted."""
        for file, k, row in zip(files, classes.tolist(), features.half(), strict=True):
            self.seen += 1
            if len(self._kept) < MOST_COMPARED:
                self._kept.append((file, k, row.clone()))
                continue
            # Vitter's algorithm R
            place = int(np.random.default_rng([self.seed, self.seen]).integers(self.seen))
            if place < MOST_COMPARED:
                self._kept[place] = (file, k, row.clone())

    def result(self) -> tuple[Shift, list[str]] | None:
        """Compare; return what was found and the sample's names. None for too few pictures."""
        folder, loaded = self.member.folder, self.member.loaded
        validation = folder.load_validation() if folder and self._kept else None
        if folder is None or validation is None or "features" not in validation:
            return None
        files, classes, rows = zip(*self._kept, strict=True)
        with understood(folder.path):
            first = Sample(validation["features"].float(), validation["labels"])
            second = Sample(torch.stack(rows).float(), torch.tensor(classes))
            depths = getattr(loaded.classifier, "depths", ())
            widths = [depth.columns for depth in depths] or [second.features.shape[1]]
            found = compare_samples(first, second, widths, loaded.classes, self.seed)
        return None if found is None else (found, [str(file) for file in files])

    def told(self) -> tuple[str, dict[str, Any] | None]:
        """Return a warning, "" without one, and the test as JSON has it, None without one."""
        found = self.result()
        if found is None:
            return "", None
        shift, names = found
        warning = ""
        if shift.differs:
            warning = shift.text("these pictures", "those the model was validated on", names)
        return warning, shift.to_dict(names) | {"warning": warning}
