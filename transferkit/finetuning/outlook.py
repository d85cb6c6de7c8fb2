"""What features say of a data set: what more pictures would bring, whether splits differ."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferkit.closed_form.learning_curve import Labelled, LearningCurve, learning_curve
from transferkit.closed_form.shift import Sample, Shift, compare_samples
from transferkit.closed_form.similar import similar_groups
from transferkit.data.groups import SIMILAR, propose_groups
from transferkit.events import Notice, Show
from transferkit.finetuning.evidence import Evidence, out_of_sample, run_evidence
from transferkit.finetuning.wrong_labels import find_suspects
from transferkit.training.run import Run

MOST_SUSPECTS = 12
"""Pictures that a report shows for their labels."""
SEVERAL = 0.9
"""Groups by likeness count where they are at most so many of the pictures."""


@dataclass(frozen=True)
class GroupedAccuracy:
    """Leave-one-out accuracy, by picture and where whole groups leave. by: for `--group-by`."""

    by: str
    by_picture: float
    by_group: float

    @property
    def text(self) -> str:
        """What it says, in words."""
        return (
            f"--group-by {shlex.quote(self.by)}: leave-one-out accuracy {self.by_picture:.1%} by "
            f"picture, {self.by_group:.1%} by group"
        )


@dataclass(frozen=True)
class Outlook:
    """None: too few pictures to tell. names: of the validation pictures. grouped: what groups that
    names, times or likeness suggest would say, none where groups are known.
    """

    curve: LearningCurve | None
    shift: Shift | None
    names: tuple[str, ...]
    grouped: tuple[GroupedAccuracy, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON has them."""
        shift = None
        if self.shift is not None:
            shift = self.shift.to_dict(self.names) | {"warning": self.warning}
        grouped = [asdict(each) for each in self.grouped]
        curve = self.curve and self.curve.to_dict()
        return {"learning_curve": curve, "shift": shift, "grouped": grouped}

    @property
    def warning(self) -> str:
        """Say how validation differs from training; "" where it does not."""
        if self.shift is None or not self.shift.differs:
            return ""
        return self.shift.text("validation pictures", "the training ones", self.names)


def grouped_accuracies(evidence: Evidence) -> tuple[GroupedAccuracy, ...]:
    """Compare leave-one-out by picture and by the groups that names, times or likeness suggest."""
    if evidence.groups is not None:
        return ()
    index, positions, labels = evidence.index, evidence.positions, evidence.labels
    names = [index.classes[label] for label in index.labels]
    ways = {
        way.by: torch.from_numpy(way.numbers[positions])
        for way in propose_groups(index.paths, names, index.digests, index.root)
    }
    similar = similar_groups(evidence.features, evidence.widths, labels)
    if 1 < len(similar.unique()) < SEVERAL * len(similar):
        ways[SIMILAR] = similar

    def accuracy(groups: torch.Tensor | None) -> float:
        answers = out_of_sample(replace(evidence, groups=groups)).argmax(1)
        return float((answers == labels).double().mean())

    alone = accuracy(None) if ways else 0.0
    return tuple(GroupedAccuracy(by, alone, accuracy(groups)) for by, groups in ways.items())


def outlook_of(evidence: Evidence, seed: int = 0, curve: bool = True) -> Outlook:
    """Look at training and validation pictures of a data set. curve: with a learning curve."""
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
    found = learning_curve(pictures, index.classes, seed) if curve else None
    return Outlook(found, shift, names)


def look_ahead(run: Run, show: Show) -> None:
    """Ask what the first solve of a run has kept; write learning.json and tell what it says.

    In it are the pictures whose labels look wrong the most, too.
    """
    if run.folder.read_json("solve") is None:
        return
    evidence, seed = run_evidence(run.folder.path), run.parts.config.training.seed
    curve = not run.parts.config.only_solves  # the quick way stays quick: inspect --learn
    outlook = outlook_of(evidence, seed, curve)
    labels = find_suspects(evidence, None, seed=seed)
    number = labels.estimate.number, labels.estimate.error
    root = run.parts.index.root
    rows = [
        {**row, "path": path.relative_to(root).as_posix() if path.is_relative_to(root) else path}
        for row in labels.rows()[:MOST_SUSPECTS]
        if (path := Path(row["path"]))
    ]
    suspects = {"number": number[0], "error": number[1], "rows": rows}
    run.folder.write_json("learning", {**outlook.to_dict(), "suspects": suspects})
    if number[0] - 2 * number[1] >= 1:
        text = f"{labels.estimate.text} of {labels.pictures:,} labels are probably wrong"
        show(Notice(f"{text}: transferkit labels DATA lists them"))
    for sentence in outlook.curve.sentences() if outlook.curve else ():
        show(Notice(sentence))
    if outlook.warning:
        show(Notice(outlook.warning, warning=True))
