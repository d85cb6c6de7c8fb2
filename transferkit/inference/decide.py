"""From how sure a prediction is to what is done with it: abstain, or give a set of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transferkit.config import Predict
from transferkit.errors import UserError
from transferkit.evaluation.selective import risk_coverage
from transferkit.inference.conformal import ConformalSets, fit_sets
from transferkit.inference.members import Member, validation_samples
from transferkit.inference.uncertainty import Uncertainty, measure

Floats = NDArray[np.float64]

MEASURES: dict[str, Callable[[Uncertainty], Floats]] = {
    "entropy": lambda found: found.predictive_entropy,
    "confidence": lambda found: 1 - found.mean.max(axis=1),
    "margin": lambda found: 1 - found.margin,
    "mutual_information": lambda found: found.mutual_information,
    "variation_ratio": lambda found: found.variation_ratio,
}
"""How unsure a prediction is, higher is less sure; the last two vary only among samples."""


@dataclass(frozen=True)
class Rules:
    """What is decided. threshold: pictures whose measure `by` is above it are left to a person."""

    by: str = "entropy"
    threshold: float | None = None
    sets: ConformalSets | None = None
    note: str = ""


def make_rules(members: Sequence[Member], options: Predict) -> Rules:
    """Choose thresholds on the validation pictures of the runs.

    Raises UserError when no threshold reaches the target accuracy there.
    """
    threshold, sets, note = options.abstain_above, None, ""
    if options.target_accuracy is not None or options.coverage is not None:
        samples, labels = validation_samples(members, options)
        found = measure(samples)
        if options.target_accuracy is not None:
            correct = found.mean.argmax(axis=1) == labels
            curve = risk_coverage(MEASURES[options.abstain_by](found), correct)
            chosen = curve.for_accuracy(options.target_accuracy)
            if chosen is None:
                raise UserError(
                    f"no threshold of {options.abstain_by} reaches an accuracy of "
                    f"{options.target_accuracy:.1%} on validation",
                    f"the surest pictures reach {curve.accuracy.max():.1%}",
                    "ask for less, or abstain by another measure with --abstain-by",
                )
            threshold = chosen[0]
            note = (
                f"abstains above {options.abstain_by} {threshold:.4g}: on validation this kept "
                f"{chosen[1]:.1%} of the pictures, {chosen[2]:.1%} of them right"
            )
        if options.coverage is not None:
            sets = fit_sets(options.conformal, found.mean, labels, options.coverage, options.seed)
    return Rules(options.abstain_by, threshold, sets, note)


def uniform_of(keys: Sequence[int], seed: int) -> Floats:
    """Return a random number (N,) in 0..1 for every picture, by its key and the seed."""
    return np.array([np.random.default_rng([seed, key]).random() for key in keys])
