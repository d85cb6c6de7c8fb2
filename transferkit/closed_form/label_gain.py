"""What a label would be worth: how far one more picture would change what a solve says."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.sums import ROWS


class LabelGain:
    """A solve on labelled pictures, and what it expects of candidates without labels.

    With the label y of a candidate whose score is f, the solve's scores of other pictures change by
    c (y - f) / (1 + h), a rank-one update: c is the candidate's posterior covariance with them and
    h that with itself, both over the noise. Expected over its predicted distribution, the mean
    square of that is `surprise` times `change`; where the solve is right about both, it is by how
    much the label lowers the error of pictures that are not among the labelled. The expected
    leave-one-out error of the labelled pictures alone picks worse than chance: it is lowest for
    labels that change nothing. Source: Freytag et al., "Selecting Influential Examples: Active
    Learning with Expected Model Output Changes", ECCV 2014.
    """

    def __init__(self, features: Tensor, targets: Tensor, widths: Sequence[int]) -> None:
        solution = solve(Problem(features, targets), widths)
        self._spectrum, self._penalty = solution.spectrum, solution.penalty
        self._noise = solution.penalty * solution.spectrum.weight

    def surprise(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Return the expected squared distance (N,) of labels from their scores.

        features: (N, D). probabilities: (N, K), of the labels.
        """
        scores, chances = self._spectrum.predict(features, self._penalty), probabilities.double()
        return scores.square().sum(1) - 2 * (scores * chances).sum(1) + chances.sum(1)

    def change(self, features: Tensor, others: Tensor) -> Tensor:
        """Return the mean squared change (N,) of the scores of others (M, D), per surprise."""
        theirs = self._roots(others)
        found = []
        for part in features.split(ROWS):
            own = self._roots(part)
            mean = 1 / self._spectrum.weight
            leverage = own.square().sum(1) + mean
            found.append(((own @ theirs.T + mean) / (1 + leverage[:, None])).square().mean(1))
        return torch.cat(found)

    def _roots(self, features: Tensor) -> Tensor:
        """Return rows (N, D) whose products are posterior covariances without the intercept's.

        Along a component of the labelled pictures the variance is 1 / (value + noise), along all
        other directions 1 / noise.
        """
        spectrum, noise = self._spectrum, self._noise
        scaled = spectrum.scale.of(features)
        less = noise**-0.5 - (spectrum.values + noise).rsqrt()
        return scaled / noise**0.5 - (scaled @ spectrum.vectors * less) @ spectrum.vectors.T
