"""What a solve would say had some of its pictures not been there, without solving again."""

import torch
from torch import Tensor

from transferkit.closed_form.left_out import Problem, members_of
from transferkit.closed_form.ridge import Spectrum


class Thinned:
    """A regression on N pictures, asked what it says without some of them.

    With the hat matrix H, intercept included, what is removed (r) is missed by
    z = (I - H_rr)^-1 (y - H y)_r, and all that remains is fitted to y_r - z in the place of y_r.
    The sum of squares that the penalty adds stays that of all pictures. others: (M, D), pictures
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

    def scores(self, removed: Tensor) -> Tensor:
        """Return scores (N + M, K) without the pictures at `removed` (r,), whole groups.

        Those of the pictures that remain are without the picture's own group, too.
        """
        left = self._left
        inverse = torch.linalg.inv(left[removed][:, removed])
        missed = inverse @ self._residuals[removed]
        residuals = self._residuals - left[:, removed] @ missed
        off = residuals.clone()
        gone = torch.zeros(len(left), dtype=torch.bool)
        gone[removed] = True
        to_removed = left[:, removed]
        for groups in self._members:  # (G, size)
            rows = groups[~gone[groups[:, 0]]]
            own = left[rows[:, :, None], rows[:, None, :]]
            links = to_removed[rows]  # (G, size, r)
            own = own - (links @ inverse) @ links.mT
            off[rows] = torch.linalg.solve(own, residuals[rows])
        off[removed] = missed
        targets = self._targets.index_add(0, removed, -missed)
        return torch.cat([self._targets - off, self._hat @ targets])
