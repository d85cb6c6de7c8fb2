"""From the uncertainty of a prediction to a decision: abstain, or predict a set of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transferkit.config import Predict
from transferkit.evaluation.selective import risk_coverage
from transferkit.inference.conformal import ConformalSets, fit_sets
from transferkit.inference.members import Member
from transferkit.inference.pipeline import Prediction
from transferkit.inference.sampled import validation_samples
from transferkit.inference.uncertainty import Uncertainty, uncertainty_of

Floats = NDArray[np.float64]

MEASURES: dict[str, Callable[[Uncertainty], Floats]] = {
    "entropy": lambda uncertainty: uncertainty.predictive_entropy,
    "confidence": lambda uncertainty: 1 - uncertainty.mean.max(axis=1),
    "margin": lambda uncertainty: 1 - uncertainty.margin,
    "mutual_information": lambda uncertainty: uncertainty.mutual_information,
    "variation_ratio": lambda uncertainty: uncertainty.variation_ratio,
}
"""Uncertainty measures, higher is less certain; the last two are 0 for a single sample."""


NEVER = -1.0
"""A threshold that every measure is above: nothing is decided."""


@dataclass(frozen=True)
class DecisionRule:
    """A decision rule. threshold: abstain where the measure `by` is above it, see also `NEVER`."""

    by: str = "entropy"
    threshold: float | None = None
    sets: ConformalSets | None = None
    note: str = ""


def fit_rule(members: Sequence[Member], options: Predict) -> DecisionRule:
    """Choose thresholds on the validation pictures of the runs.

    Where no threshold reaches the target accuracy there, it abstains always, with a warning.
    """
    threshold, sets, note = options.abstain_above, None, ""
    if options.target_accuracy is not None or options.coverage is not None:
        samples, labels = validation_samples(members, options)
        uncertainty = uncertainty_of(samples)
        if options.target_accuracy is not None:
            correct = uncertainty.mean.argmax(axis=1) == labels
            curve = risk_coverage(MEASURES[options.abstain_by](uncertainty), correct)
            chosen = curve.for_accuracy(options.target_accuracy)
            threshold = NEVER if chosen is None else chosen[0]
            note = (
                f"abstains from every picture: no threshold of {options.abstain_by} reaches an "
                f"accuracy of {options.target_accuracy:.1%} on validation, the most certain "
                f"pictures reach {curve.accuracy.max():.1%}; ask for less, or try --abstain-by"
                if chosen is None
                else f"abstains above {options.abstain_by} {threshold:.4g}: on validation this "
                f"kept {chosen[1]:.1%} of the pictures, {chosen[2]:.1%} of them right"
            )
        if options.coverage is not None:
            mean, coverage = uncertainty.mean, options.coverage
            sets = fit_sets(options.conformal, mean, labels, coverage, options.seed)
    return DecisionRule(options.abstain_by, threshold, sets, note)


def class_sets(rule: DecisionRule, prediction: Prediction, seed: int) -> NDArray[np.bool_] | None:
    """Return whether each class is in a picture's set, (N, K); None without sets."""
    if rule.sets is None:
        return None
    return rule.sets.contain(prediction.uncertainty.mean, uniform_of(prediction.keys, seed))


def uniform_of(keys: Sequence[int], seed: int) -> Floats:
    """Return random numbers (N,) in 0..1 that depend on the pictures' keys and the seed."""
    return np.array([np.random.default_rng([seed, key]).random() for key in keys])
