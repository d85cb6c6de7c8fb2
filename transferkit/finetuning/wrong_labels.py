"""Suspects among the labels of a data set, with the pictures that speak for either label."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.closed_form.ridge import scale_of
from transferkit.closed_form.sums import ROWS
from transferkit.closed_form.suspects import Estimate, Ranking, estimate, rank
from transferkit.data.index import DatasetIndex
from transferkit.finetuning.evidence import Evidence, out_of_sample

NEIGHBOURS = 3
LEAST_SHOWN = 10
SUSPECTS = 256
"""Whose distances to all pictures are computed at a time."""
MOST_PAIRS = 20
COLUMNS = (
    *("path", "label", "proposed", "probability", "probability_label", "split"),
    *("near_label", "near_proposed"),
)
"""Of the rows, which are written."""


@dataclass(frozen=True)
class Suspect:
    """A picture whose label looks wrong. position: in the index; proposed: the other class.

    sure, given: probability of the proposed and of the given class, out of sample. for_label,
    for_proposed: positions of the nearest pictures of either class, nearest first.
    """

    position: int
    label: str
    proposed: str
    sure: float
    given: float
    for_label: tuple[int, ...]
    for_proposed: tuple[int, ...]


@dataclass(frozen=True)
class WrongLabels:
    """What the labels of a data set look like to each other. suspects: the most suspicious first.

    pictures: how many were looked at. estimate: how many labels are probably wrong.
    """

    index: DatasetIndex
    pictures: int
    estimate: Estimate
    suspects: tuple[Suspect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and the rows, ready for JSON."""
        return {
            "pictures": self.pictures,
            "probably_wrong": self.estimate.number,
            "error": self.estimate.error,
            "confident_learning": self.estimate.confident,
            "pairs": self.pairs(),
            "suspects": self.rows(),
        }

    def pairs(self) -> list[dict[str, Any]]:
        """Return the pairs of classes by how many pictures probably have the wrong one of them."""
        joint = self.estimate.joint
        most = joint.flatten().argsort(descending=True, stable=True)[:MOST_PAIRS].tolist()
        places = [divmod(place, len(joint)) for place in most]
        classes = self.index.classes
        return [
            {"label": classes[i], "proposed": classes[j], "pictures": float(joint[i, j])}
            for i, j in places
            if joint[i, j] >= 0.5
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each suspect, as it is written."""
        paths = self.index.paths
        values = (
            (
                *(paths[each.position], each.label, each.proposed, each.sure, each.given),
                str(self.index.splits[each.position]),
                *([paths[p] for p in near] for near in (each.for_label, each.for_proposed)),
            )
            for each in self.suspects
        )
        return [dict(zip(COLUMNS, row, strict=True)) for row in values]


def find_suspects(
    evidence: Evidence,
    select: int | None,
    confirmed: Collection[str] = (),
    seed: int = 0,
    probabilities: Tensor | None = None,
) -> WrongLabels:
    """Rank the labels of a data set and look up the neighbours of the first `select`.

    select: None takes as many as are probably wrong, and two standard errors more, where another
    class is more probable. confirmed: paths whose label somebody has looked at: they are learned
    from, but are no suspects. probabilities: (N, K), out of sample; None: see `out_of_sample`.
    """
    if probabilities is None:
        probabilities = out_of_sample(evidence)
    labels = evidence.labels
    index, positions = evidence.index, evidence.positions
    asked = np.array([index.paths[p] not in confirmed for p in positions], dtype=bool)
    rows = torch.from_numpy(np.flatnonzero(asked))
    ranking = rank(probabilities, labels)
    found = estimate(probabilities[rows], labels[rows], seed)
    eligible = torch.from_numpy(asked)
    if select is None:
        select = max(LEAST_SHOWN, math.ceil(found.number + 2 * found.error))
        eligible = eligible & ranking.unlikely
    order = ranking.order[eligible[ranking.order]][:select]
    near_label, near_proposed = (
        nearest(evidence, ranking, order, wanted[order]) for wanted in (labels, ranking.proposed)
    )
    suspects = []
    for row, for_label, for_proposed in zip(order.tolist(), near_label, near_proposed, strict=True):
        label, proposed = int(labels[row]), int(ranking.proposed[row])
        suspects.append(
            Suspect(
                int(positions[row]),
                index.classes[label],
                index.classes[proposed],
                float(ranking.sure[row]),
                float(probabilities[row, label]),
                tuple(int(positions[near]) for near in for_label),
                tuple(int(positions[near]) for near in for_proposed),
            )
        )
    return WrongLabels(index, len(rows), found, tuple(suspects))


def nearest(evidence: Evidence, ranking: Ranking, rows: Tensor, wanted: Tensor) -> list[list[int]]:
    """Return the rows of the nearest pictures of a class for each row (S,), the nearest first.

    wanted: (S,), the class. Features are scaled as the solve scales them. Left out are the picture
    itself, its group, and pictures that are suspects themselves.
    """
    labels, groups = evidence.labels, evidence.groups
    groups = torch.arange(len(labels)) if groups is None else groups
    scale = scale_of(evidence.features, torch.ones(len(labels)).double(), evidence.widths)
    found = []
    for part, classes in zip(rows.split(SUSPECTS), wanted.split(SUSPECTS), strict=True):
        own = scale.of(evidence.features[part])
        distances = torch.cat(
            [torch.cdist(own, scale.of(some)) for some in evidence.features.split(ROWS)], 1
        )
        fits = (labels == classes[:, None]) & (groups != groups[part][:, None])
        distances[~fits | ranking.unlikely] = math.inf
        values, places = distances.topk(min(NEIGHBOURS, len(labels)), largest=False)
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        found += [[p for v, p in zip(*row, strict=True) if v < math.inf] for row in pairs]
    return found
