"""Ridge regression by one eigendecomposition, which gives the solution for every penalty."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.closed_form.sums import ROWS, Sums, finite, sum_up

RANK_TOLERANCE = 1e-12
"""Directions that vary less than this share of the largest one are rounding errors."""
CONSTANT = 1e-12
"""A column whose variance is below this share of its mean square is constant in float32."""


@dataclass(frozen=True)
class Scale:
    """How columns are brought to one size: (x - center) * factor, each (D,) in float64."""

    center: Tensor
    factor: Tensor

    def of(self, features: Tensor) -> Tensor:
        """Return scaled features (N, D) in float64."""
        return (finite(features) - self.center) * self.factor


@dataclass(frozen=True)
class Spectrum:
    """A ridge regression of targets (K,) on scaled features (D,), decomposed.

    values: (R,), eigenvalues of the weighted covariance times `weight`, the sum of weights;
    vectors: (D, R). crossed: (R, K), weighted products of the features' components and the targets.
    mean: (K,), weighted, of the targets. All in float64.
    """

    scale: Scale
    values: Tensor
    vectors: Tensor
    crossed: Tensor
    mean: Tensor
    weight: float

    def shrunk(self, penalty: float) -> Tensor:
        """Return coefficients (R, K) of the components.

        They minimise the weighted mean squared error plus `penalty` times the sum of the squared
        coefficients; the intercept is not penalised.
        """
        return self.crossed / (self.values + penalty * self.weight)[:, None]

    def components(self, features: Tensor) -> Tensor:
        """Return the components (N, R) of features (N, D)."""
        return self.scale.of(features) @ self.vectors

    def on_components(self) -> "Spectrum":
        """Return the same regression of components (R,) in the place of features."""
        return on_components(self.values, self.crossed, self.mean, self.weight)

    def predict(self, features: Tensor, penalty: float) -> Tensor:
        """Return scores (N, K) of features (N, D)."""
        coefficients = self.shrunk(penalty)
        parts = (self.components(part) @ coefficients for part in features.split(ROWS))
        return torch.cat([*parts]) + self.mean

    def linear(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return weight (K, D) and bias (K,) for features as they are: the scale is folded in."""
        weight = ((self.vectors @ self.shrunk(penalty)) * self.scale.factor[:, None]).T
        return weight, self.mean - weight @ self.scale.center


def on_components(values: Tensor, crossed: Tensor, mean: Tensor, weight: float) -> Spectrum:
    """Return a regression whose features are its components (R,), see `Spectrum`."""
    count = len(values)
    unit = Scale(torch.zeros(count).double(), torch.ones(count).double())
    return Spectrum(unit, values, torch.eye(count).double(), crossed, mean, weight)


def decompose(
    features: Tensor, targets: Tensor, widths: Sequence[int], weights: Tensor | None = None
) -> Spectrum:
    """Decompose the regression of targets (N, K) on features (N, D).

    widths: columns of each depth, D together; none: the columns are scaled already, and are only
    centred. weights: (N,) of the pictures, 1 each unless given.
    The smaller of both matrices is decomposed, of products between pictures or between features,
    which give the same. Memory is about the square of the smaller number, beside the features.
    Raises UserError for features that are not finite.
    """
    if len(features) >= features.shape[1]:
        return decompose_sums(sum_up(features, targets, weights), widths)
    w = torch.ones(len(features)).double() if weights is None else weights.double()
    scale = scale_of(features, w, widths)
    gram = torch.zeros(len(features), len(features), dtype=torch.float64)
    roots = w.sqrt()[:, None]
    for columns in _column_parts(features):
        gram += (part := _scaled_columns(features, scale, columns) * roots) @ part.T
    values, left = eigen(gram)
    vectors = torch.empty(features.shape[1], len(values), dtype=torch.float64)
    for columns in _column_parts(features):
        part = _scaled_columns(features, scale, columns) * roots
        vectors[columns] = part.T @ (left / values.sqrt())
    total = float(w.sum())
    mean = w @ targets.double() / total
    crossed = values.sqrt()[:, None] * (left.T @ (roots * (targets.double() - mean)))
    return Spectrum(scale, values, vectors, crossed, mean, total)


def decompose_sums(sums: Sums, widths: Sequence[int]) -> Spectrum:
    """Decompose a regression of which only the sums are there, see `decompose`."""
    total = sums.weight
    center = sums.features / total
    variance = sums.products.diagonal() / total - center.square()
    scale = Scale(center, _factor(center, variance, widths))
    covariance = torch.addr(sums.products, sums.features, center, alpha=-1)
    covariance *= scale.factor  # in place: each copy would be of D x D
    covariance *= scale.factor[:, None]
    mean = sums.targets / total
    crossed = (sums.crossed - torch.outer(sums.features, mean)) * scale.factor[:, None]
    values, vectors = eigen(covariance)
    return Spectrum(scale, values, vectors, vectors.T @ crossed, mean, float(total))


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (R,) above rounding errors and their vectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > max(RANK_TOLERANCE * float(values.clamp_min(0).max()), 1e-300)
    return values[kept], vectors[:, kept]


def _factor(center: Tensor, variance: Tensor, widths: Sequence[int]) -> Tensor:
    """Return what columns are multiplied by: 1 / deviation / root of their depth's width.

    Constant columns get 0. Without widths each column is as large as it should be.
    """
    if not widths:
        return torch.ones_like(center)
    varies = variance > CONSTANT * (variance + center.square())
    sizes = torch.repeat_interleave(torch.tensor(widths), torch.tensor(widths)).double()
    return torch.where(varies, (variance.clamp_min(0) * sizes).rsqrt(), 0.0)


def scale_of(features: Tensor, weights: Tensor, widths: Sequence[int]) -> Scale:
    """Return the scale of features (N, D). weights: (N,). widths: columns of each depth."""
    total = weights.sum()
    means, variances = [], []
    for columns in _column_parts(features):
        part = finite(features[:, columns])
        means.append(mean := weights @ part / total)
        variances.append(weights @ (part - mean).square() / total)
    center = torch.cat(means)
    return Scale(center, _factor(center, torch.cat(variances), widths))


def _column_parts(features: Tensor) -> list[slice]:
    return [slice(i, i + ROWS) for i in range(0, features.shape[1], ROWS)]


def _scaled_columns(features: Tensor, scale: Scale, columns: slice) -> Tensor:
    return (features[:, columns].double() - scale.center[columns]) * scale.factor[columns]
