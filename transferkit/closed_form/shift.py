"""Whether two sets of pictures look different: a classifier two-sample test on their features."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.closed_form.left_out import Problem, left_out_scores
from transferkit.closed_form.ridge import decompose

Floats = NDArray[np.float64]

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
PERMUTATIONS = 199
LEAST_COMPARED, MOST_COMPARED = 30, 500
"""Pictures of a set: fewer are not compared; of more, so many at random."""
RARELY, CLEARLY = 0.01, 0.6
"""The chance of a false alarm, and the AUC from which a difference is worth telling."""
LEAST_OF_CLASS, SHOWN = 5, 5


@dataclass(frozen=True)
class Shift:
    """How well a classifier tells a second set of pictures from a first one, out of sample.

    auc: 0.5 where it cannot. p_value: by permutation. pictures: numbers of both. most: rows of the
    second set that look most different, the first ones first. classes: name -> AUC among the
    pictures of one class, where both sets have some.
    """

    auc: float
    p_value: float
    pictures: tuple[int, int]
    most: tuple[int, ...]
    classes: dict[str, float]

    @property
    def differs(self) -> bool:
        """Whether the difference is neither chance nor too small to matter."""
        return self.p_value <= RARELY and self.auc >= CLEARLY

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the test as JSON has it. names: of the second set's pictures."""
        most = [names[row] for row in self.most]
        return asdict(self) | {"differs": self.differs, "most": most}

    def text(self, these: str, those: str, names: Sequence[str]) -> str:
        """Say in plain words what differs. these: the second set; names: of its pictures."""
        found = f"{these} look different from {those}: a classifier tells them apart with AUC "
        found += f"{self.auc:.2f} (p = {self.p_value:.3f})"
        worst = [k for k, auc in self.classes.items() if auc >= max(CLEARLY, self.auc)][:3]
        found += f", most of all {', '.join(f'`{name}`' for name in worst)}" if worst else ""
        return f"{found}; first {', '.join(names[row] for row in self.most[:3])}"


@dataclass(frozen=True)
class Sample:
    """A set of pictures. features: (N, D). labels: (N,). groups: (N,), None: each its own."""

    features: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def some(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return at most `MOST_COMPARED` rows, in their order."""
        return np.sort(rng.permutation(len(self.labels))[:MOST_COMPARED])


def compare_samples(
    first: Sample, second: Sample, widths: Sequence[int], classes: Sequence[str], seed: int = 0
) -> Shift | None:
    """Compare two sets of pictures; None where one has fewer than `LEAST_COMPARED`.

    widths: columns of each depth. A ridge regression tells the sets apart, each picture (or group)
    judged without itself, at the penalty of the lowest squared error; the same with the sets drawn
    at random says how often chance does as well. Source: Lopez-Paz and Oquab, "Revisiting
    Classifier Two-Sample Tests", ICLR 2017.
    """
    if min(len(first.labels), len(second.labels)) < LEAST_COMPARED:
        return None
    rng = np.random.default_rng(seed)
    rows = [first.some(rng), second.some(rng)]
    features = torch.cat([s.features[r] for s, r in zip((first, second), rows, strict=True)])
    labels = torch.cat([s.labels[r] for s, r in zip((first, second), rows, strict=True)]).numpy()
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = torch.cat([first.groups[rows[0]], second.groups[rows[1]]])
    sides = np.arange(len(labels)) >= len(rows[0])
    drawn = _permuted(sides, groups, rng)  # (N, 1 + P)
    scores = _left_out(features, drawn, widths, groups)
    aucs = _areas(scores, drawn)
    own, theirs = scores[~sides, 0], scores[sides, 0]
    of_class = {}
    for k in np.unique(labels):
        mine = labels == k
        if min((mine & sides).sum(), (mine & ~sides).sum()) >= LEAST_OF_CLASS:
            of_class[classes[k]] = float(_areas(scores[mine, :1], drawn[mine, :1])[0])
    ranked = sorted(of_class.items(), key=lambda pair: -pair[1])
    return Shift(
        auc=float(aucs[0]),
        p_value=float((aucs[1:] >= aucs[0]).sum() + 1) / len(aucs),
        pictures=(len(own), len(theirs)),
        most=tuple(rows[1][np.argsort(-theirs, kind="stable")[:SHOWN]].tolist()),
        classes=dict(ranked),
    )


def _permuted(
    sides: NDArray[np.bool_], groups: Tensor | None, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return the sides (N,) and `PERMUTATIONS` draws of them, (N, 1 + P); whole groups move."""
    of = np.arange(len(sides)) if groups is None else groups.numpy()
    pairs = np.stack([of, sides], axis=1)  # a group on both sides is one on each
    _, first, unit = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    units = sides[first]
    draws = [units, *(rng.permutation(units) for _ in range(PERMUTATIONS))]
    return np.stack(draws, axis=1)[unit.flatten()]


def _left_out(
    features: Tensor, sides: NDArray[np.bool_], widths: Sequence[int], groups: Tensor | None
) -> Floats:
    """Return leave-one-out scores (N, P) of regressions on `sides` (N, P), the true one first."""
    shares = sides.mean(0)
    targets = torch.from_numpy(np.where(sides, 1 / shares, -1 / (1 - shares)) / 2)
    spectrum = decompose(features, targets, widths)
    problem = Problem(spectrum.components(features), targets, None, groups)
    inside = spectrum.on_components()
    found = [left_out_scores(inside, problem, penalty) for penalty in PENALTIES]
    errors = torch.stack([(scores - targets).square().mean(0) for scores in found])  # (4, P)
    best = errors.argmin(0)
    return torch.stack(found)[best, :, torch.arange(len(best))].T.numpy()


def _areas(scores: Floats, sides: NDArray[np.bool_]) -> Floats:
    """Return the area under the ROC curve (P,) of scores (N, P) for the second side."""
    from scipy.stats import rankdata

    number = sides.sum(0)
    ranks = (rankdata(scores, axis=0) * sides).sum(0)
    return np.asarray((ranks - number * (number + 1) / 2) / (number * (len(sides) - number)))
