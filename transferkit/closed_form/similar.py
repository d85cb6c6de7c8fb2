"""Pictures that are nearly the same to the network: bursts, copies, one object seen twice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transferkit.closed_form.judge import gain_of, misses
from transferkit.closed_form.left_out import Problem, Solution, left_out_scores, solve
from transferkit.closed_form.ridge import scale_of
from transferkit.closed_form.sums import ROWS
from transferkit.errors import UserError

ALIKE_BY_CHANCE = 1e-5
"""Share of the pairs of different classes that are more alike than what counts as similar."""
MOST_COMPARED = 4096
"""Pictures that are compared unasked: each with each."""
NOTABLE, ERRORS = 0.03, 2.0
"""Accuracy that goes with the similar pictures, and its standard errors, that are worth a word."""


@dataclass(frozen=True)
class Similar:
    """What similar pictures do to leave-one-out accuracy: by picture, and by group.

    groups, in_groups: how many groups of two or more there are, and pictures in them.
    """

    groups: int
    in_groups: int
    by_picture: float
    by_group: float


def similar_groups(features: Tensor, widths: Sequence[int], labels: Tensor) -> Tensor:
    """Return the group (N,) of each picture: linked are those of one class that are too alike.

    features: (N, D) of several depths, widths: columns of each. Two pictures are too alike where
    the cosine of their standardised features is higher than that of nearly all pairs of different
    classes, which cannot show the same thing (all but `ALIKE_BY_CHANCE`).
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    number = len(labels)
    scale = scale_of(features, torch.ones(number).double(), widths)
    scaled = torch.cat([scale.of(part).float() for part in features.split(ROWS)])
    unit = torch.nn.functional.normalize(scaled)
    counts = labels.bincount()
    different = (number**2 - int(counts.square().sum())) // 2
    if not different:
        return torch.arange(number)
    highest = torch.full((max(1, round(different * ALIKE_BY_CHANCE)) * 2,), -1.0)  # each pair twice
    pairs, found = [], []  # of one class, above what the limit is so far: it only rises
    for rows in torch.arange(number).split(ROWS):
        cosines, same = unit[rows] @ unit.T, labels[rows][:, None] == labels
        highest = torch.cat([highest, cosines[~same]]).topk(len(highest)).values
        alike = same & (cosines > highest[-1])
        pairs.append(alike.nonzero() + torch.stack([rows[0], torch.tensor(0)]))
        found.append(cosines[alike])
    row, column = torch.cat(pairs)[torch.cat(found) > highest[-1]].T.numpy()
    links = coo_matrix((np.ones(len(row)), (row, column)), shape=(number, number))
    return torch.from_numpy(connected_components(links, directed=False)[1]).long()


def what_similar_hide(
    problem: Problem, widths: Sequence[int], labels: Tensor, solution: Solution, left_out: Tensor
) -> Similar | None:
    """Return how much of the leave-one-out accuracy is owed to similar pictures, where it matters.

    solution, left_out: of the problem, see `left_out_scores`. None where groups are known and where
    it matters little.
    """
    if problem.groups is not None or len(labels) > MOST_COMPARED:
        return None
    if problem.sums is not None:  # those of a group that are not here would stay in it
        problem = replace(problem, sums=None)
        solution = solve(problem, widths)
        left_out = left_out_scores(solution.spectrum, problem, solution.penalty)
    groups = similar_groups(problem.features, widths, labels)
    sizes = groups.bincount()
    if not bool((sizes > 1).any()) or len(sizes) < 2:
        return None
    wrong = misses(left_out, labels)
    together = replace(problem, groups=groups)
    try:
        own = left_out_scores(solution.spectrum, together, solution.penalty)
    except (UserError, torch.linalg.LinAlgError):  # a group that nothing is left without
        return None
    lost, error = gain_of(wrong, misses(own, labels))
    if lost < max(NOTABLE, ERRORS * error):
        return None
    several, by_picture = sizes[sizes > 1], 1 - float(wrong.mean())
    return Similar(len(several), int(several.sum()), by_picture, by_picture - lost)
