"""Conformal prediction sets: they contain the true class with a chosen probability."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PENALTY, FREE_RANKS = 0.1, 2
"""Of RAPS: every class in a set beyond the second adds 0.1 to its score."""


def lac_scores(probabilities: Floats, _: Floats) -> Floats:
    """One minus the probability of a class: the smallest sets on average.

    Source: Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers", JASA 2019.
    """
    return 1 - probabilities


def aps_scores(probabilities: Floats, uniform: Floats) -> Floats:
    """Probability of all more likely classes, and a random share of the class's own.

    Source: Romano, Sesia and Candès, "Classification with Valid and Adaptive Coverage", NeurIPS
    2020.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, before + uniform[:, None] * ranked, axis=1)
    return scores


def raps_scores(probabilities: Floats, uniform: Floats) -> Floats:
    """As APS, with a penalty on long sets.

    Source: Angelopoulos et al., "Uncertainty Sets for Image Classifiers ...", ICLR 2021.
    """
    ranks = np.argsort(np.argsort(-probabilities, axis=1, kind="stable"), axis=1)  # from 0
    return aps_scores(probabilities, uniform) + PENALTY * np.maximum(0, ranks + 1 - FREE_RANKS)


METHODS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "lac": lac_scores,
    "class": lac_scores,
    "aps": aps_scores,
    "raps": raps_scores,
}


@dataclass(frozen=True)
class ConformalSets:
    """Thresholds (K,): a class is in the set when its score is at most its threshold."""

    method: str
    thresholds: Floats

    def contain(self, probabilities: Floats, uniform: Floats) -> NDArray[np.bool_]:
        """Return whether each class is in the set, (N, K); maybe in none. uniform: (N,) in 0..1."""
        return METHODS[self.method](probabilities, uniform) <= self.thresholds


def fit_sets(
    method: str, probabilities: Floats, labels: Integers, coverage: float, seed: int = 0
) -> ConformalSets:
    """Split conformal: the threshold that `coverage` of the held-out labels' scores are within.

    probabilities: (N, K). labels: (N,). method "class" has a threshold for each class, so that
    the coverage holds in every class; a class with too few pictures is then in every set.
    Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; class-
    conditional: Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """
    uniform = np.random.default_rng([seed, 1]).random(len(labels))
    scores = METHODS[method](probabilities, uniform)[np.arange(len(labels)), labels]
    num_classes = probabilities.shape[1]
    if method != "class":
        return ConformalSets(method, np.full(num_classes, conformal_quantile(scores, coverage)))
    thresholds = [conformal_quantile(scores[labels == k], coverage) for k in range(num_classes)]
    return ConformalSets(method, np.array(thresholds))


def conformal_quantile(scores: Floats, coverage: float) -> float:
    """Return the ceil((n + 1) * coverage)-th smallest score; infinity where n is too small."""
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf
