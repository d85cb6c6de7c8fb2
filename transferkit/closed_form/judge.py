"""Which of several solves to take, by what they say of pictures that they have not seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURES = (1e-3, 1e2)
"""Of scores between 0 and 1, that are tried."""


@dataclass(frozen=True)
class Judgement:
    """The choice among candidates. losses: mean of each; gain: of the choice over the simplest.

    error: standard error of the gain.
    """

    chosen: int
    losses: tuple[float, ...]
    gain: float
    error: float


def judge(losses: Sequence[Tensor], errors_wanted: float = 2.0) -> Judgement:
    """Choose among candidates, listed from the simplest or most usual to the richest.

    losses: each (N,), of the same N pictures, out of sample; lower is better. A richer candidate is
    taken when its mean is lower than the chosen one's by more than `errors_wanted` standard errors
    of the difference, picture by picture.
    """
    chosen = 0
    for number in range(1, len(losses)):
        gain, error = gain_of(losses[number], losses[chosen])
        if gain > errors_wanted * error:
            chosen = number
    means = tuple(float(loss.mean()) for loss in losses)
    return Judgement(chosen, means, *gain_of(losses[chosen], losses[0]))


def gain_of(losses: Tensor, others: Tensor) -> tuple[float, float]:
    """Return by how much losses (N,) are lower than others (N,) on the mean, and its error."""
    gains = (others - losses).double()
    if len(gains) < 2:
        return float(gains.mean()), math.inf
    return float(gains.mean()), float(gains.std() / math.sqrt(len(gains)))


def misses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the loss (N,) 1 for a picture whose highest score is not its label's, else 0."""
    return (scores.argmax(1) != labels).double()


def squared(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error (N,), summed over the targets."""
    return (scores - targets).double().square().sum(1)


def log_losses(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the negative log-likelihood (N,) of labels (N,) under scores (N, K)."""
    return torch.nn.functional.cross_entropy(
        scores.double() / temperature, labels, reduction="none"
    )


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature at which out-of-sample scores (N, K) have the lowest log loss.

    One picture counts as wrong at random, beside those there are: scores that are right everywhere
    would else ask for certainty that N pictures do not justify.
    """
    from scipy.optimize import minimize_scalar

    share = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        logits = torch.log_softmax(scores.double() / math.exp(log_temperature), 1)
        own = logits.gather(1, labels[:, None]).mean()
        return -float((1 - share) * own + share * logits.mean())

    low, high = (math.log(limit) for limit in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def accuracy_interval(
    misses: Tensor, groups: Tensor | None = None, z: float = 1.96
) -> tuple[float, float]:
    """Return Wilson's interval of the accuracy from N pictures; 95 % by default.

    groups: (N,), of pictures that are right or wrong together: these count as fewer.
    Source: Wilson, "Probable Inference", Journal of the American Statistical Association, 1927.
    """
    count = len(misses) / alikeness(misses, groups)
    accuracy = 1 - float(misses.mean())
    center = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)
    half = z * math.sqrt(spread) / (1 + z**2 / count)
    return center - half, center + half


def alikeness(losses: Tensor, groups: Tensor | None) -> float:
    """Return by how much the variance of the mean loss (N,) is larger than of single pictures.

    1 without groups. Source: Kish, "Survey Sampling", 1965 (design effect).
    """
    if groups is None:
        return 1.0
    _, group = groups.unique(return_inverse=True)
    off = (losses - losses.mean()).double()
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, off)
    return max(1.0, float(sums.square().sum() / off.square().sum().clamp_min(1e-12)))


def disagree(
    losses: Tensor,
    others: Tensor,
    groups: tuple[Tensor | None, Tensor | None] = (None, None),
    errors: float = 2.0,
) -> bool:
    """Whether mean losses on two sets of pictures differ by more than their errors allow.

    groups: of the pictures of either set, see `accuracy_interval`.
    """
    variance = sum(
        float(part.double().var(unbiased=False)) / len(part) * alikeness(part, own)
        for part, own in zip((losses, others), groups, strict=True)
    )
    difference = abs(float(losses.mean()) - float(others.mean()))
    return difference > errors * math.sqrt(variance) and difference > 0
