"""What a label would be worth: how far one more picture would lower leave-one-out error."""

from collections.abc import Sequence

from torch import Tensor

from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.ridge import Spectrum


class LabelGain:
    """A solve on labelled pictures (M), and what it expects of candidates without labels.

    With I - H of the labelled pictures (H the hat matrix, intercept included), r = (I - H) y, and
    of a candidate its score f, its hat row w and its leverage h, one more picture labelled y_x
    makes the residual of picture i without itself

        (r_i + w_i (f - y_x) / (1 + h)) / ((I - H)_ii + w_i^2 / (1 + h)),

    a rank-one update; its expected square is in closed form. The penalty stays as it is. Source:
    Roy and McCallum, "Toward Optimal Active Learning through Sampling Estimation of Error
    Reduction", ICML 2001.
    """

    def __init__(self, features: Tensor, targets: Tensor, widths: Sequence[int]) -> None:
        problem = Problem(features, targets)
        solution = solve(problem, widths)
        self._spectrum: Spectrum = solution.spectrum
        self._ridge = solution.penalty * self._spectrum.weight
        own = self._spectrum.components(features)
        self._shrunk = own / (self._spectrum.values + self._ridge)
        self._mean = 1 / self._spectrum.weight
        truth = targets.double()
        self._diagonal = 1 - self._mean - (own * self._shrunk).sum(1)  # of I - H
        self._residuals = truth - self._shrunk @ (own.T @ truth) - self._mean * truth.sum(0)
        self._targets = truth

    def of(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Return by how much the mean squared leave-one-out error is expected to fall, (N,).

        features: (N, D). probabilities: (N, K), of the candidates' labels.
        """
        hat, leverage = self._hat(features)
        scores, chances = hat @ self._targets, probabilities.double()
        steps = hat / (1 + leverage[:, None])  # (N, M)
        off = scores - chances  # expected, (N, K)
        square = scores.square().sum(1) - 2 * (scores * chances).sum(1) + 1
        own = self._residuals.square().sum(1)
        after = own + 2 * steps * (off @ self._residuals.T) + steps.square() * square[:, None]
        after = after / (self._diagonal + hat * steps).square()
        return (own / self._diagonal.square()).mean() - after.mean(1)

    def _hat(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return hat rows (N, M) and leverages (N,) of candidates."""
        scaled = self._spectrum.scale.of(features)
        components = scaled @ self._spectrum.vectors
        rest = (scaled.square().sum(1) - components.square().sum(1)).clamp_min(0)
        inside = (components.square() / (self._spectrum.values + self._ridge)).sum(1)
        return components @ self._shrunk.T + self._mean, inside + self._mean + rest / self._ridge
