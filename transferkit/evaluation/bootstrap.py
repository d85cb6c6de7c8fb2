"""Bootstrap confidence intervals: how much metrics vary with the sample of pictures."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RESAMPLES = 1000


def bootstrap_intervals(
    log_probabilities: Floats,
    labels: Integers,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of accuracy, balanced accuracy, macro F1 and log loss.

    log_probabilities: (N, K). labels: (N,). level: confidence level, 0..1.
    Every resample draws N pictures with replacement, reproducibly from `seed`.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    count, num_classes = log_probabilities.shape
    losses = -log_probabilities[np.arange(count), labels]
    cells = labels * num_classes + log_probabilities.argmax(axis=1)
    samples: dict[str, list[float]] = {name: [] for name in (*FROM_CONFUSION, "log_loss")}
    for _ in range(resamples):
        drawn = generator.integers(count, size=count)
        confusion = np.bincount(cells[drawn], minlength=num_classes**2)
        for name, metric in FROM_CONFUSION.items():
            samples[name].append(metric(confusion.reshape(num_classes, num_classes)))
        samples["log_loss"].append(float(losses[drawn].mean()))
    return {name: percentile_interval(values, level) for name, values in samples.items()}


def percentile_interval(values: Sequence[float] | Floats, level: float) -> tuple[float, float]:
    """Return the interval that leaves out (1 - level) / 2 of the values on either side."""
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def _balanced_accuracy(confusion: Integers) -> float:
    support = confusion.sum(axis=1)
    present = support > 0
    return float((np.diag(confusion)[present] / support[present]).mean())


def _macro_f1(confusion: Integers) -> float:
    size = confusion.sum(axis=1) + confusion.sum(axis=0)
    present = size > 0
    return float((2 * np.diag(confusion)[present] / size[present]).mean())


FROM_CONFUSION: Mapping[str, Callable[[Integers], float]] = {
    "accuracy": lambda confusion: float(np.trace(confusion) / confusion.sum()),
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
}


def paired_difference(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the second model's accuracy less the first's: (mean, low, high).

    first, second: (N,) whether each was right on the same N >= 1 pictures. Pictures are resampled,
    not single predictions, so what both models find easy or hard does not widen the interval.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    gains = second.astype(np.int64) - first.astype(np.int64)
    counts = np.array([(gains == gain).sum() for gain in (-1, 0, 1)])
    drawn = generator.multinomial(len(gains), counts / len(gains), size=resamples)  # (R, 3)
    values = (drawn[:, 2] - drawn[:, 0]) / len(gains)
    return float(gains.mean()), *percentile_interval(values, level)
