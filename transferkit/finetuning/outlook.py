"""What features say of a data set: what more pictures would bring, whether splits differ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transferkit.closed_form.learning_curve import Labelled, LearningCurve, learning_curve
from transferkit.closed_form.shift import Sample, Shift, compare_samples
from transferkit.events import Notice, Show
from transferkit.finetuning.evidence import Evidence, run_evidence
from transferkit.training.run import Run


@dataclass(frozen=True)
class Outlook:
    """None: too few pictures to tell. names: of the validation pictures."""

    curve: LearningCurve | None
    shift: Shift | None
    names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON has them."""
        shift = None
        if self.shift is not None:
            shift = self.shift.to_dict(self.names) | {"warning": self.warning}
        return {"learning_curve": self.curve and self.curve.to_dict(), "shift": shift}

    @property
    def warning(self) -> str:
        """Say how validation differs from training; "" where it does not."""
        if self.shift is None or not self.shift.differs:
            return ""
        return self.shift.text("validation pictures", "the training ones", self.names)


def outlook_of(evidence: Evidence, seed: int = 0) -> Outlook:
    """Look at the training and validation pictures of a data set."""
    index, groups = evidence.index, evidence.groups
    splits = index.splits[evidence.positions]
    sides = [torch.from_numpy(np.flatnonzero(splits == split)) for split in ("train", "val")]
    first, second = (
        Sample(
            evidence.features[rows],
            evidence.labels[rows],
            None if groups is None else groups[rows],
        )
        for rows in sides
    )
    both = torch.cat(sides)
    pictures = Labelled(
        evidence.features[both],
        evidence.widths,
        evidence.labels[both],
        torch.arange(len(both)) < len(sides[0]),
        None if groups is None else groups[both],
    )
    names = tuple(index.paths[int(p)] for p in evidence.positions[sides[1].numpy()])
    shift = compare_samples(first, second, evidence.widths, index.classes, seed)
    return Outlook(learning_curve(pictures, index.classes, seed), shift, names)


def look_ahead(run: Run, show: Show) -> None:
    """Ask what the first solve of a run has kept; write learning.json and tell what it says."""
    if run.folder.read_json("solve") is None:
        return
    outlook = outlook_of(run_evidence(run.folder.path), run.parts.config.training.seed)
    run.folder.write_json("learning", outlook.to_dict())
    for sentence in outlook.curve.sentences() if outlook.curve else ():
        show(Notice(sentence))
    if outlook.warning:
        show(Notice(outlook.warning, warning=True))
