"""A power law through the errors of a learning curve."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXPONENTS = np.linspace(0.05, 2.0, 40)


def fit_power_law(pictures: Floats, errors: Floats, floor: bool = True) -> Floats:
    """Return (B, 3): a, b, c of a n^-b + c through errors (B, S) at numbers of pictures (S,).

    Least squares with a >= 0 and c >= 0, without a floor c = 0, for each exponent in `EXPONENTS`,
    of which the best is taken; a point counts by its number of pictures, since the law holds for
    many. Source: Cortes et al., "Learning Curves: Asymptotic Values and Rate of Convergence",
    NeurIPS 1993.
    """
    most = pictures.max()
    weights = pictures / pictures.sum()
    best = np.full(len(errors), np.inf)
    found = np.zeros((len(errors), 3))
    level = errors @ weights
    for exponent in EXPONENTS:
        powers = (pictures / most) ** -exponent
        alone = errors @ (weights * powers) / (weights @ powers**2)
        slope, rest = alone, np.zeros_like(alone)
        if floor:
            mean = powers @ weights
            spread = weights @ (powers - mean) ** 2
            slope = (errors - level[:, None]) @ (weights * (powers - mean)) / spread
            slope = np.clip(slope, 0, None)
            rest = level - slope * mean
            slope, rest = np.where(rest < 0, alone, slope), np.clip(rest, 0, None)
        off = (errors - slope[:, None] * powers - rest[:, None]) ** 2 @ weights
        better = off < best - 1e-15
        best = np.where(better, off, best)
        law = np.stack([slope * most**exponent, np.full_like(slope, exponent), rest], axis=1)
        found[better] = law[better]
    return found


def law_at(laws: Floats, pictures: float) -> Floats:
    """Return the errors (B,) of laws (B, 3) at a number of pictures."""
    return laws[:, 0] * pictures ** -laws[:, 1] + laws[:, 2]
