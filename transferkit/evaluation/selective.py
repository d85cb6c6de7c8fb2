"""Selective prediction: accuracy when the least certain pictures are left to a person."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve: accuracy among the most certain pictures, for every number kept.

    coverage: (N,) share of pictures kept, 1/N .. 1. accuracy: (N,) among those kept. threshold:
    (N,) highest uncertainty among those kept.
    """

    coverage: Floats
    accuracy: Floats
    threshold: Floats

    @property
    def area(self) -> float:
        """AURC: mean error over all coverages, 0 is best.

        Source: Geifman et al., "Bias-Reduced Uncertainty Estimation ...", ICLR 2019.
        """
        return float(1 - self.accuracy.mean())

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy with at least this share (0..1) of the pictures kept."""
        at = int(np.searchsorted(self.coverage, coverage - 1e-9))
        return float(self.accuracy[min(at, len(self.accuracy) - 1)])

    def for_accuracy(self, target: float) -> tuple[float, float, float] | None:
        """Return (threshold, coverage, accuracy) of the highest coverage with `target` accuracy.

        Pictures whose uncertainty is at most the threshold are kept. None if no threshold reaches
        the target. Source: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective
        Classification", JMLR 2010.
        """
        # a threshold keeps all pictures of equal uncertainty: only the last of a tie is possible
        ends = np.append(np.diff(self.threshold) > 0, True)
        fits = np.flatnonzero(ends & (self.accuracy >= target - 1e-12))
        if not len(fits):
            return None
        at = int(fits[-1])
        return float(self.threshold[at]), float(self.coverage[at]), float(self.accuracy[at])

    def points(self, number: int = 101) -> list[dict[str, float]]:
        """Return at most `number` points of the curve, evenly spread over the coverage."""
        count = len(self.coverage)
        at = np.unique(np.linspace(0, count - 1, min(number, count)).round().astype(int))
        return [{name: float(values[i]) for name, values in vars(self).items()} for i in at]


def risk_coverage(uncertainty: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve of an uncertainty score.

    uncertainty: (N,) higher is less certain; N >= 1. correct: (N,) whether predictions were right.
    Ties count with their mean accuracy, so that their order does not matter.
    """
    score = np.asarray(uncertainty, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    order = np.argsort(score, kind="stable")
    _, group, sizes = np.unique(score[order], return_inverse=True, return_counts=True)
    tie_means = (np.bincount(group, right[order]) / sizes)[group]
    kept = np.arange(1, len(score) + 1)
    return RiskCoverage(kept / len(score), np.cumsum(tie_means) / kept, score[order])


def detection_auroc(uncertainty: ArrayLike, positive: ArrayLike) -> float:
    """Return the AUROC of a score as a detector of errors or out-of-distribution pictures.

    It is the probability that a positive has a higher score than a negative; NaN without both.
    """
    from sklearn.metrics import roc_auc_score

    positives = np.asarray(positive, dtype=bool)
    if positives.all() or not positives.any():
        return float("nan")
    return float(roc_auc_score(positives, np.asarray(uncertainty, dtype=np.float64)))
