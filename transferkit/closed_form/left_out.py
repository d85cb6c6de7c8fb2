"""What a ridge regression says of pictures that it has not seen, without fitting it again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transferkit.closed_form.ridge import Spectrum, decompose, decompose_sums
from transferkit.closed_form.sums import ROWS, Sums
from transferkit.errors import UserError

PENALTIES = tuple(10 ** (k / 3) for k in range(-18, 4))
"""Times the sum of squared coefficients, beside the mean squared error; 1e-6 to 10."""


@dataclass(frozen=True)
class Problem:
    """Features (N, D) and targets (N, K) of N pictures.

    weights: (N,), else 1 each. groups: (N,) of any numbers; the pictures of one leave together,
    else each alone. sums: over all pictures to solve for, of which these are some; None: over
    these.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None
    sums: Sums | None = None

    def of_columns(self, columns: slice) -> "Problem":
        """Return the problem with some of the features."""
        sums = None if self.sums is None else self.sums.of_columns(columns)
        return replace(self, features=self.features[:, columns], sums=sums)

    def decomposed(self, widths: Sequence[int]) -> Spectrum:
        """Return the regression, decomposed; widths: columns of each depth."""
        if self.sums is not None:
            return decompose_sums(self.sums, widths)
        return decompose(self.features, self.targets, widths, self.weights)


@dataclass(frozen=True)
class Solution:
    """A regression with its penalty.

    errors: (L,), leave-one-out squared error at `PENALTIES`; empty where the penalty was given.
    """

    spectrum: Spectrum
    penalty: float
    errors: tuple[float, ...]


def solve(problem: Problem, widths: Sequence[int], penalty: float | None = None) -> Solution:
    """Solve the regression; leave-one-out squared error chooses the penalty unless it is given.

    widths: columns of each depth. Raises UserError for features that are not finite, and where
    nothing remains to learn from when one group is left out.
    """
    spectrum = problem.decomposed(widths)
    if penalty is not None:
        return Solution(spectrum, penalty, ())
    errors = squared_errors(spectrum, problem, PENALTIES)
    return Solution(spectrum, PENALTIES[errors.index(min(errors))], errors)


def solve_for(
    problem: Problem, widths: Sequence[int], features: Tensor, targets: Tensor
) -> Solution:
    """Solve the regression with the penalty whose squared error on other pictures is lowest.

    features: (M, D) and targets: (M, K), of the other pictures. `errors` are theirs.
    """
    spectrum = problem.decomposed(widths)
    components, truth = spectrum.components(features), targets.double()
    errors = tuple(
        float((components @ spectrum.shrunk(p) + spectrum.mean - truth).square().sum(1).mean())
        for p in PENALTIES
    )
    return Solution(spectrum, PENALTIES[errors.index(min(errors))], errors)


def left_out_scores(spectrum: Spectrum, problem: Problem, penalty: float) -> Tensor:
    """Return scores (N, K) of every picture by the regression on all pictures of other groups.

    The columns' scale stays that of all pictures. Equal to fitting again without the group.
    """
    scores = torch.empty(problem.targets.shape, dtype=torch.float64)
    for rows in _batches(members_of(problem)):
        scores[rows] = problem.targets[rows].double() - _Batch(spectrum, problem, rows).off(penalty)
    return scores


def squared_errors(
    spectrum: Spectrum, problem: Problem, penalties: Sequence[float]
) -> tuple[float, ...]:
    """Return the leave-one-out squared error at every penalty: weighted mean over the pictures."""
    found = torch.zeros(len(penalties), dtype=torch.float64)
    total = 0.0
    for rows in _batches(members_of(problem)):
        batch = _Batch(spectrum, problem, rows)
        total += float(batch.weights.sum())
        for i, penalty in enumerate(penalties):
            squares = batch.off(penalty).square().sum(2)
            found[i] += (batch.weights * squares).sum()
    return tuple((found / total).tolist())


def members_of(problem: Problem) -> list[Tensor]:
    """Return the rows of all groups, those of one size together: (groups, size) for each size.

    Raises UserError where there is only one group.
    """
    if problem.groups is None:
        found = [torch.arange(len(problem.targets))[:, None]]
    else:
        _, group, sizes = np.unique(problem.groups, return_inverse=True, return_counts=True)
        rows = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
        alike = [[r for r in rows if len(r) == size] for size in np.unique(sizes)]
        found = [torch.from_numpy(np.stack(same)) for same in alike]
    if sum(len(of_size) for of_size in found) < 2:
        raise UserError(
            "all pictures belong to one group: nothing remains to learn from without it",
            "",
            "group them by something that differs between pictures",
        )
    return found


def _batches(members: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield rows (groups, size) of a few groups at a time, about `ROWS` pictures."""
    for of_size in members:
        yield from of_size.split(max(1, ROWS // of_size.shape[1])) if len(of_size) else ()


class _Batch:
    """B groups of M pictures each, that leave together.

    With the hat matrix H of the regression, intercept included, the residuals without a group are
    (I - H_gg)^-1 (y - prediction). Weights are taken half to either side, so that H is symmetric.
    """

    def __init__(self, spectrum: Spectrum, problem: Problem, rows: Tensor) -> None:
        shape = rows.shape
        given = problem.weights
        self.weights = torch.ones(shape).double() if given is None else given[rows].double()
        self._roots = self.weights.sqrt()[..., None]
        components = spectrum.components(problem.features[rows.flatten()])
        self._components = components.view(*shape, -1)
        # the intercept is one component more, of eigenvalue `weight` and without a penalty
        self._influence = torch.cat([self._components, torch.ones(*shape, 1)], 2) * self._roots
        self._residuals = problem.targets[rows].double() - spectrum.mean
        self._spectrum = spectrum

    def off(self, penalty: float) -> Tensor:
        """Return by how much left-out predictions miss the targets: target - score, (B, M, K)."""
        spectrum, influence = self._spectrum, self._influence
        misses = self._residuals - self._components @ spectrum.shrunk(penalty)
        shrinkage = torch.cat(
            [
                spectrum.values + penalty * spectrum.weight,
                spectrum.values.new_tensor([spectrum.weight]),
            ]
        )
        size, rank = influence.shape[1:]
        if size == 1:
            return misses / (1 - (influence.square() @ (1 / shrinkage))[..., None])
        misses = misses * self._roots
        if size <= rank:
            remaining = torch.eye(size).double() - (influence / shrinkage) @ influence.mT
            found = torch.linalg.solve(remaining, misses)
        else:  # a group larger than the rank: the same by what is left of the components
            remaining = shrinkage.diag_embed() - influence.mT @ influence
            inner = torch.linalg.solve(remaining, influence.mT @ misses)
            found = misses + influence @ inner
        return found / self._roots
