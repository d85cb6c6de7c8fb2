"""Labels that are probably wrong, by what a classifier says of pictures that it has not seen."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TINY = 1e-300
"""Stands for a probability of 0, whose logarithm could not be compared."""
TEMPERATURES = tuple(np.geomspace(0.1, 2.0, 31).tolist())
"""Tried on the probabilities: wrong labels have made a fitted temperature too high."""
SHARES, MOST_WRONG = 60, 0.5
"""Number of shares of wrong labels that are tried, and the largest."""
DRAWS = 200
"""Bootstrap samples."""


@dataclass(frozen=True)
class Ranking:
    """N pictures, by how wrong their labels look.

    doubts: (N,), negative logarithm of the given class's probability. order: (N,), positions, the
    most doubtful first. proposed: (N,), the most probable other class; sure: (N,), its probability.
    unlikely: (N,), whether it is more probable than the given one.
    """

    doubts: Tensor
    order: Tensor
    proposed: Tensor
    sure: Tensor
    unlikely: Tensor


def rank(probabilities: Tensor, labels: Tensor) -> Ranking:
    """Rank labels (N,) by out-of-sample probabilities (N, K), K >= 2."""
    logs = _logs(probabilities)
    given = logs.gather(1, labels[:, None])[:, 0]
    best, proposed = logs.scatter(1, labels[:, None], -math.inf).max(1)
    order = given.argsort(stable=True)
    return Ranking(-given, order, proposed, best.exp(), best > given)


@dataclass(frozen=True)
class Estimate:
    """How many labels are probably wrong. error: its standard error.

    joint: (K, K), how many are labelled i and are j; 0 where they are right. confident: the number
    by confident learning, which counts mistakes of the classifier, too.
    """

    number: float
    error: float
    joint: Tensor
    confident: float

    @property
    def text(self) -> str:
        """The number with its error, no less than 1."""
        return f"{self.number:,.0f} ± {max(1, round(self.error)):,}"


def estimate(probabilities: Tensor, labels: Tensor, seed: int = 0) -> Estimate:
    """Estimate how many labels (N,) are wrong, from out-of-sample probabilities (N, K), K >= 2.

    Labels are taken to be drawn from the classifier's probabilities q at some temperature, and a
    share s of them then changed to any other class: P(label) = (1 - s) q + s (1 - q) / (K - 1).
    Share and temperature are those of the highest likelihood: the temperature accounts for what is
    ambiguous, the share for labels that the classifier is sure are others. Source: Copas, "Binary
    Regression Models for Contaminated Data", Journal of the Royal Statistical Society B, 1988.
    """
    from scipy.optimize import minimize

    count, num_classes = probabilities.shape
    if not count:
        return Estimate(0.0, 0.0, torch.zeros(num_classes, num_classes).double(), 0.0)
    logs = _logs(probabilities)

    def own(temperature: float) -> Tensor:
        return (logs / temperature).log_softmax(1).gather(1, labels[:, None])[:, 0].exp()

    def likelihoods(share: Tensor, given: Tensor) -> Tensor:
        wrong = share * (1 - given) / (num_classes - 1)
        return ((1 - share) * given + wrong).clamp_min(TINY).log()

    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (DRAWS, count), generator=generator)
    counts = [each.bincount(minlength=count) for each in drawn]
    weights = torch.stack([torch.ones(count), *counts]).double().T
    shares = torch.tensor([0.0, *np.geomspace(0.1 / count, MOST_WRONG, SHARES)]).double()
    best = torch.full((DRAWS + 1,), -math.inf).double()
    profile = torch.full((len(shares),), -math.inf).double()
    found = torch.zeros(DRAWS + 1, 2).double()  # share and temperature
    for temperature in TEMPERATURES:
        each = likelihoods(shares[:, None], own(temperature)) @ weights
        profile = torch.maximum(profile, each[:, 0])
        values, places = each.max(0)
        here = torch.stack([shares[places], torch.full_like(best, temperature)], 1)
        found = torch.where((values > best)[:, None], here, found)
        best = torch.maximum(best, values)

    def loss(x: np.ndarray) -> float:
        share = torch.tensor(min(max(x[0], 0.0), MOST_WRONG)).double()
        return -float(likelihoods(share, own(math.exp(x[1]))).sum())

    start = [float(found[0, 0]), math.log(float(found[0, 1]))]
    steps = [start, [start[0] * 1.2 + 1e-4, start[1]], [start[0], start[1] + 0.1]]
    options = {"initial_simplex": steps, "xatol": 1e-6, "fatol": 1e-9}
    fitted = minimize(loss, start, method="Nelder-Mead", options=options)
    share, temperature = min(max(fitted.x[0], 0.0), MOST_WRONG), math.exp(fitted.x[1])
    joint = _expected(logs / temperature, labels, share)
    # beside 0 the bootstrap says too little: the largest share that is not much less likely
    possible = float(shares[profile > profile.max() - 0.5].max() - share)
    error = max(float(found[1:, 0].std()), possible) * count
    by_others = confident_joint(probabilities, labels).fill_diagonal_(0)
    return Estimate(float(joint.sum()), error, joint, float(by_others.sum()))


def _expected(logs: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return how many pictures (K, K) are labelled i and are j != i, of logarithms (N, K)."""
    num_classes = logs.shape[1]
    others = logs.softmax(1)
    given = others.gather(1, labels[:, None])[:, 0]
    likely = (1 - share) * given + share * (1 - given) / (num_classes - 1)
    others = others.scatter(1, labels[:, None], 0.0) * share / (num_classes - 1)
    wrong = others / likely.clamp_min(TINY)[:, None]
    return torch.zeros(num_classes, num_classes).double().index_add_(0, labels, wrong)


def _logs(probabilities: Tensor) -> Tensor:
    return probabilities.double().clamp_min(TINY).log()


def confident_joint(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return how many pictures (K, K) were labelled i and are j, calibrated to the labels' counts.

    A picture counts for j where j's probability reaches the mean one of the pictures that are
    labelled j; for the most probable of several. Source: Northcutt, Jiang and Chuang, "Confident
    Learning", Journal of Artificial Intelligence Research, 2021.
    """
    num_classes = probabilities.shape[1]
    counts = labels.bincount(minlength=num_classes).double()
    own = probabilities.double().gather(1, labels[:, None])[:, 0]
    means = torch.zeros(num_classes).double().index_add_(0, labels, own) / counts.clamp_min(1)
    means[counts == 0] = math.inf  # nobody is confident of a class without pictures
    reaching = probabilities.double().where(probabilities >= means, -1.0)
    best, right = reaching.max(1)
    sure = best >= 0
    joint = torch.zeros(num_classes, num_classes).double()
    joint.index_put_((labels[sure], right[sure]), torch.ones(int(sure.sum())).double(), True)
    rows = joint.sum(1, keepdim=True)
    return torch.where(rows > 0, joint * counts[:, None] / rows.clamp_min(1), counts.diag())
