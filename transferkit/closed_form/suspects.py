"""Labels that are probably wrong, by what a classifier says of pictures that it has not seen.

Sources: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
JAIR 2021 (the joint); Copas, "Binary Regression Models for Contaminated Data", JRSS B 1988 (the
share of labels that were changed, beside a classifier's own doubt).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-300
"""Stands for a probability of 0, whose logarithm could not be compared."""


@dataclass(frozen=True)
class Ranking:
    """N pictures, by how wrong their labels look.

    margins: (N,), logarithm of the probability of the best other class over that of the given one;
    above 0, the given one is not the most probable. proposed: (N,), that class; sure: (N,), its
    probability. order: (N,), positions, the most suspicious first.
    """

    margins: Tensor
    proposed: Tensor
    sure: Tensor
    order: Tensor


def rank(probabilities: Tensor, labels: Tensor) -> Ranking:
    """Rank labels (N,) by out-of-sample probabilities (N, K), K >= 2.

    Of probabilities that are the softmax of scores, it is the order of the scores' differences.
    """
    logs = probabilities.double().clamp_min(TINY).log()
    given = logs.gather(1, labels[:, None])[:, 0]
    best, proposed = logs.scatter(1, labels[:, None], -math.inf).max(1)
    margins = best - given
    return Ranking(margins, proposed, best.exp(), margins.argsort(descending=True, stable=True))


def confident_joint(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return how many pictures (K, K) were labelled i and are j, calibrated to the labels' counts.

    A picture counts for j where j's probability reaches the mean one of the pictures that are
    labelled j; for the most probable of several. Source: Northcutt et al., 2021.
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
