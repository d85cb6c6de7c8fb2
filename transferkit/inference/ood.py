"""Out-of-distribution detection by the features of a picture, or the energy of its logits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[Floats, Floats], Floats]

NEIGHBOURS = 10
FALSE_ALARMS = 0.01
"""Share of validation pictures that the limit flags."""
CHUNK = 1024


def knn_score(reference: Floats, labels: NDArray[np.int64]) -> Score:
    """Distance to the 10th nearest training picture in normalised features.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    """
    bank = normalized(reference)
    k = min(NEIGHBOURS, len(bank))

    def score(features: Floats, logits: Floats) -> Floats:
        distances = []
        for start in range(0, len(features), CHUNK):
            part = normalized(features[start : start + CHUNK])
            squared = np.maximum(2 - 2 * part @ bank.T, 0)
            distances.append(np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1]))
        return np.concatenate(distances)

    return score


def mahalanobis_score(reference: Floats, labels: NDArray[np.int64]) -> Score:
    """Mahalanobis distance to the nearest class mean, one shrunk covariance for all classes.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples",
    NeurIPS 2018; shrinkage: Ledoit and Wolf, 2004.
    """
    from sklearn.covariance import LedoitWolf

    classes = np.unique(labels)
    means = np.stack([reference[labels == k].mean(axis=0) for k in classes])
    centred = reference - means[np.searchsorted(classes, labels)]
    precision = LedoitWolf(assume_centered=True, store_precision=True).fit(centred).precision_

    def score(features: Floats, logits: Floats) -> Floats:
        far = [np.einsum("nd,de,ne->n", features - m, precision, features - m) for m in means]
        nearest: Floats = np.sqrt(np.maximum(np.min(far, axis=0), 0))
        return nearest

    return score


def energy_score(reference: Floats, labels: NDArray[np.int64]) -> Score:
    """Minus the log-sum-exp of the logits.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    """

    def score(features: Floats, logits: Floats) -> Floats:
        from scipy.special import logsumexp

        value: Floats = -logsumexp(logits, axis=1)
        return value

    return score


METHODS: dict[str, Callable[[Floats, NDArray[np.int64]], Score]] = {
    "knn": knn_score,
    "mahalanobis": mahalanobis_score,
    "energy": energy_score,
}


@dataclass(frozen=True)
class OodScore:
    """A score scaled to validation: 0 is its median, 1 its 99 % quantile, the limit."""

    score: Score
    median: float
    limit: float

    def __call__(self, features: Floats, logits: Floats) -> Floats:
        """Return (N,) of features (N, D) and logits (N, K); above 1 is out of distribution."""
        width = max(self.limit - self.median, 1e-12)
        return (self.score(features, logits) - self.median) / width


def fit_ood_score(
    method: str, reference: tuple[Floats, NDArray[np.int64]], validation: tuple[Floats, Floats]
) -> OodScore:
    """Fit a score. reference: features (M, D) and labels (M,) of training pictures;
    validation: features (N, D) and logits (N, K) of pictures that were not trained on.
    """
    score = METHODS[method](*reference)
    scores = score(*validation)
    limit = np.quantile(scores, 1 - FALSE_ALARMS, method="higher")
    return OodScore(score, float(np.median(scores)), float(limit))


def normalized(features: Floats) -> Floats:
    """Return features (N, D) scaled to length 1."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, 1e-12)
