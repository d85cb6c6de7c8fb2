"""A power law through the errors of a learning curve."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXPONENTS = np.linspace(0.05, 2.0, 40)


def fit_power_law(pictures: Floats, errors: Floats) -> Floats:
    """Return (B, 3): a, b, c of a n^-b + c through errors (B, S) at numbers of pictures (S,).

    Least squares with a >= 0 and c >= 0 for each exponent in `EXPONENTS`, of which the best is
    taken; a point counts by its number of pictures, since the law holds for many. Source: Cortes
    et al., "Learning Curves: Asymptotic Values and Rate of Convergence", NeurIPS 1993.
    """
    most = pictures.max()
    weights = pictures / pictures.sum()
    best = np.full(len(errors), np.inf)
    found = np.zeros((len(errors), 3))
    level = np.maximum(errors @ weights, 0)
    for exponent in EXPONENTS:
        powers = (pictures / most) ** -exponent
        mean = powers @ weights
        spread = weights @ (powers - mean) ** 2
        slope = np.maximum((errors - level[:, None]) @ (weights * (powers - mean)) / spread, 0)
        floor = level - slope * mean
        alone = errors @ (weights * powers) / (weights @ powers**2)  # without a floor
        slope, floor = np.where(floor < 0, alone, slope), np.maximum(floor, 0)
        off = (errors - slope[:, None] * powers - floor[:, None]) ** 2 @ weights
        better = off < best - 1e-15
        best = np.where(better, off, best)
        law = np.stack([slope * most**exponent, np.full_like(slope, exponent), floor], axis=1)
        found[better] = law[better]
    return found


def law_at(laws: Floats, pictures: float) -> Floats:
    """Return the errors (B,) of laws (B, 3) at a number of pictures."""
    return laws[:, 0] * pictures ** -laws[:, 1] + laws[:, 2]
