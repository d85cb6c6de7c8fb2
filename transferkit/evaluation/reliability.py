"""Calibration: whether predictions with a confidence of 80 % are right in 80 % of cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_BINS = 15
"""Bins of the reliability diagram, as in Guo et al. (2017)."""

Strategy = Literal["width", "mass"]


@dataclass(frozen=True)
class ReliabilityBin:
    """The pictures whose confidence lies in (low, high]; the first bin includes 0.

    confidence, accuracy: their means, 0..1; NaN in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, strategy: Strategy = "width", bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Bin predictions by their confidence.

    confidence: (N,) probabilities of the predicted classes. correct: (N,) whether they were right.
    strategy: "width" for `bins` of equal width over 0..1, "mass" for bins of equally many pictures
    (at most one per picture).
    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2;
    equal mass: Nguyen and O'Connor, "Posterior calibration ...", EMNLP 2015.
    """
    values = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if strategy == "width":
        edges = np.linspace(0, 1, bins + 1)
        number = np.searchsorted(edges[1:-1], values, side="left")
        groups = [np.flatnonzero(number == b) for b in range(bins)]
        limits = list(pairwise(edges))
    else:
        order = np.argsort(values, kind="stable")
        groups = [group for group in np.array_split(order, bins) if len(group)]
        limits = [(values[group[0]], values[group[-1]]) for group in groups]
    return tuple(
        ReliabilityBin(
            float(low),
            float(high),
            len(group),
            float(values[group].mean()) if len(group) else float("nan"),
            float(right[group].mean()) if len(group) else float("nan"),
        )
        for (low, high), group in zip(limits, groups, strict=True)
    )


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: mean |accuracy - confidence|, weighted by pictures.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
    2015.
    """
    total = sum(item.count for item in bins)
    gaps = (item.count * abs(item.accuracy - item.confidence) for item in bins if item.count)
    return sum(gaps) / total if total else float("nan")


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log-probabilities (..., K) of logits (..., K) divided by the temperature."""
    scores = np.asarray(logits, dtype=np.float64) / temperature
    scores = scores - scores.max(axis=-1, keepdims=True)  # the largest exponential is 1
    result: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return result


def brier_score(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean squared distance of probabilities (N, K) from one-hot labels (N,), 0..2."""
    one_hot = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def confidence_of(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) the highest probability of every row of (N, K)."""
    return probabilities.max(axis=1)
