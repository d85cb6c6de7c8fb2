"""From the uncertainty of a prediction to a decision: abstain, or predict a set of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transferkit.config import Predict
from transferkit.errors import UserError, usage_error
from transferkit.evaluation.selective import risk_coverage
from transferkit.files.foreign_files import understood
from transferkit.inference.conformal import ConformalSets, fit_sets
from transferkit.inference.dropout import head_samples
from transferkit.inference.members import Member
from transferkit.inference.pipeline import Prediction, probabilities_of
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


@dataclass(frozen=True)
class DecisionRule:
    """A decision rule. threshold: abstain where the measure `by` is above it."""

    by: str = "entropy"
    threshold: float | None = None
    sets: ConformalSets | None = None
    note: str = ""


def fit_rule(members: Sequence[Member], options: Predict) -> DecisionRule:
    """Choose thresholds on the validation pictures of the runs.

    Raises UserError when no threshold reaches the target accuracy there.
    """
    threshold, sets, note = options.abstain_above, None, ""
    if options.target_accuracy is not None or options.coverage is not None:
        samples, labels = validation_samples(members, options)
        uncertainty = uncertainty_of(samples)
        if options.target_accuracy is not None:
            correct = uncertainty.mean.argmax(axis=1) == labels
            curve = risk_coverage(MEASURES[options.abstain_by](uncertainty), correct)
            chosen = curve.for_accuracy(options.target_accuracy)
            if chosen is None:
                raise UserError(
                    f"no threshold of {options.abstain_by} reaches an accuracy of "
                    f"{options.target_accuracy:.1%} on validation",
                    f"the most certain pictures reach {curve.accuracy.max():.1%}",
                    "ask for less, or abstain by another measure with --abstain-by",
                )
            threshold = chosen[0]
            note = (
                f"abstains above {options.abstain_by} {threshold:.4g}: on validation this kept "
                f"{chosen[1]:.1%} of the pictures, {chosen[2]:.1%} of them right"
            )
        if options.coverage is not None:
            mean, coverage = uncertainty.mean, options.coverage
            sets = fit_sets(options.conformal, mean, labels, coverage, options.seed)
    return DecisionRule(options.abstain_by, threshold, sets, note)


def validation_samples(
    members: Sequence[Member], options: Predict
) -> tuple[Floats, NDArray[np.int64]]:
    """Return probabilities (N, S, K) of the validation pictures and their labels (N,).

    The head runs on the stored features. Raises UserError where a member has none, or where the
    members of an ensemble were validated on different pictures.
    """
    samples, labels = [], None
    for member in members:
        stored = member.folder.load_validation() if member.folder else None
        if stored is None:
            what = f"{member.path} holds no validation features to choose thresholds on"
            raise UserError(what, remedy="train it again with this release")
        position = np.argsort(member.order)  # of the member's classes among the first member's
        with understood(member.path):
            member_labels = position[stored["labels"].numpy()]
        if labels is not None and not np.array_equal(member_labels, labels):
            what = f"{member.path} and {members[0].path} were validated on different pictures"
            remedy = "thresholds of an ensemble need runs on the same data with the same split"
            raise usage_error(what, remedy=remedy)
        labels = member_labels
        if options.mc_dropout:
            features, keys = stored["features"].float(), range(len(labels))
            head = member.loaded.classifier.head
            logits = head_samples(head, features, keys, options.mc_dropout, options.seed)
        else:
            logits = stored["logits"][:, None]
        samples.append(probabilities_of(member, logits, options))
    assert labels is not None
    return np.concatenate(samples, axis=1), labels


def class_sets(rule: DecisionRule, prediction: Prediction, seed: int) -> NDArray[np.bool_] | None:
    """Return whether each class is in a picture's set, (N, K); None without sets."""
    if rule.sets is None:
        return None
    return rule.sets.contain(prediction.uncertainty.mean, uniform_of(prediction.keys, seed))


def uniform_of(keys: Sequence[int], seed: int) -> Floats:
    """Return random numbers (N,) in 0..1 that depend on the pictures' keys and the seed."""
    return np.array([np.random.default_rng([seed, key]).random() for key in keys])
