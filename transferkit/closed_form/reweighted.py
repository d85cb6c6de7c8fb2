"""What a solve would say had some pictures another weight, or none, without solving again."""

import torch
from torch import Tensor

from transferkit.closed_form.left_out import Problem, members_of
from transferkit.closed_form.ridge import Spectrum


class Reweighted:
    """A regression on N pictures of weight 1, asked what it says with other weights.

    With the hat matrix H, intercept included, and r = (I - H) y, the pictures T of new weights w
    take y - z in the place of y, z = ((I - H)_TT + diag(w / (1 - w)))^-1 r_T (Woodbury's identity);
    one of weight 0 is missed by z. What the penalty adds stays as it is. others: (M, D), pictures
    that are never learned from.
    """

    def __init__(
        self, spectrum: Spectrum, problem: Problem, penalty: float, others: Tensor
    ) -> None:
        own, theirs = spectrum.components(problem.features), spectrum.components(others)
        shrunk = own / (spectrum.values + penalty * spectrum.weight)
        self._targets = problem.targets.double()
        self._left = torch.eye(len(own)).double() - own @ shrunk.T - 1 / spectrum.weight
        self._residuals = self._left @ self._targets
        self._hat = theirs @ shrunk.T + 1 / spectrum.weight  # (M, N)
        self._members = members_of(problem)

    def scores(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return scores (N + M, K) where the pictures at `rows` (r,) have weights (r,) but 1.

        Weight 0 is for whole groups. Those of all other pictures are without their own group.
        """
        left = self._left
        to_rows = left[:, rows]
        inverse = torch.linalg.inv(to_rows[rows] + (weights / (1 - weights)).double().diag())
        moved = inverse @ self._residuals[rows]
        residuals = self._residuals - to_rows @ moved
        off = torch.empty_like(residuals)
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[rows] = weights == 0
        for groups in self._members:  # (G, size)
            kept = groups[~gone[groups[:, 0]]]
            links = to_rows[kept]  # (G, size, r)
            own = left[kept[:, :, None], kept[:, None, :]] - (links @ inverse) @ links.mT
            off[kept] = torch.linalg.solve(own, residuals[kept])
        off[rows[weights == 0]] = moved[weights == 0]
        targets = self._targets.index_add(0, rows, -moved)
        return torch.cat([self._targets - off, self._hat @ targets])
