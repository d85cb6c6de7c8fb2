"""Temperature scaling: one temperature for all logits, fitted on held-out pictures."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transferkit.evaluation.reliability import (
    ReliabilityBin,
    brier_score,
    calibration_error,
    confidence_of,
    log_softmax,
    reliability_bins,
)
from transferkit.evaluation.selective import detection_auroc, risk_coverage
from transferkit.inference.uncertainty import entropy, margin

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LIMITS = (0.05, 20.0)
"""Temperatures that are tried; outside, probabilities are 0 and 1, or all the same."""
FOLDS = 5
FORMAT = 1


@dataclass(frozen=True)
class Quality:
    """How far probabilities can be trusted. reliability: bins of equal width."""

    ece: float
    ece_equal_mass: float
    log_loss: float
    brier: float
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class SampledCalibration:
    """The calibration of the mean over samples of MC dropout, on validation.

    before: with the temperature of a single pass. after: with one of its own, cross-fitted.
    """

    samples: int
    before: Quality
    after: Quality


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model on pictures that it was not fitted on.

    judged_on: "validation", or "leave-one-out" of training pictures. temperature: divides the
    logits; fitted on all of them. before, after: without it, and with each picture's temperature
    fitted on other folds (cross-fitted). risk_coverage: points of the curve of `1 - confidence`.
    wrong_detection: AUROC of each measure as a detector of errors.
    sampled: None without dropout in the head.
    """

    temperature: float
    pictures: int
    before: Quality
    after: Quality
    risk_coverage: tuple[dict[str, float], ...]
    aurc: float
    wrong_detection: dict[str, float]
    judged_on: str = "validation"
    sampled: SampledCalibration | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for calibration.json."""
        return asdict(self)


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Return probabilities (..., K) of logits (..., K) divided by the temperature."""
    return np.exp(log_softmax(logits, temperature))


def log_mean(samples: Floats, temperature: float = 1.0) -> Floats:
    """Return the logarithm (N, K) of the mean probability of samples' logits (N, S, K)."""
    logs = log_softmax(samples, temperature)
    if samples.shape[1] == 1:
        return logs[:, 0]
    top = logs.max(axis=1, keepdims=True)
    found: Floats = top[:, 0] + np.log(np.exp(logs - top).mean(axis=1))
    return found


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature with the lowest log loss on held-out pictures, within `LIMITS`.

    logits: (N, K), or (N, S, K) of samples whose mean counts. labels: (N,). The target of a picture
    is (N + 1) / (N + 2) for its label, as in
    Platt's method: where every picture is right, the log loss alone would push the temperature
    towards 0, certainty that N pictures do not justify.
    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2; Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999, section 2.2.
    """
    from scipy.optimize import minimize_scalar

    scores, targets = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    scores = scores[:, None] if scores.ndim == 2 else scores  # (N, S, K)
    count, _, num_classes = scores.shape
    if count == 0 or num_classes < 2 or not np.isfinite(scores).all():
        return 1.0
    rest = 1 / (count + 2)
    soft = np.full((count, num_classes), rest / (num_classes - 1))
    soft[np.arange(count), targets] = 1 - rest

    def loss(log_temperature: float) -> float:
        logs = log_mean(scores, float(np.exp(log_temperature)))
        return float(-(soft * logs).sum() / count)

    limits = tuple(np.log(LIMITS))
    best = minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-6}).x
    # equal logits (an untrained head) fit every temperature
    return float(np.exp(best)) if loss(best) < loss(0.0) - 1e-9 else 1.0


def cross_fitted(logits: Floats, labels: Integers) -> Floats:
    """Return log-probabilities (N, K), each picture's temperature fitted on the other folds.

    logits: as `fit_temperature`. Picture n belongs to fold n mod `FOLDS`. With fewer than two
    pictures per fold: temperature 1.
    """
    logits = logits[:, None] if logits.ndim == 2 else logits
    if len(labels) < 2 * FOLDS:
        return log_mean(logits)
    result = np.empty((len(labels), logits.shape[2]))
    fold = np.arange(len(labels)) % FOLDS
    for number in range(FOLDS):
        inside = fold == number
        temperature = fit_temperature(logits[~inside], labels[~inside])
        result[inside] = log_mean(logits[inside], temperature)
    return result


def quality(log_probabilities: Floats, labels: Integers) -> Quality:
    """Measure log-probabilities (N, K) against labels (N,)."""
    probabilities = np.exp(log_probabilities)
    confidence = confidence_of(probabilities)
    correct = probabilities.argmax(axis=1) == labels
    bins = reliability_bins(confidence, correct)
    return Quality(
        ece=calibration_error(bins),
        ece_equal_mass=calibration_error(reliability_bins(confidence, correct, "mass")),
        log_loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        brier=brier_score(probabilities, labels),
        reliability=bins,
    )


def calibrate(logits: ArrayLike, labels: ArrayLike, judged_on: str = "validation") -> Calibration:
    """Fit the temperature on logits (N, K) and labels (N,) of unseen pictures; measure the rest.

    N >= 1. judged_on: as in `Calibration`.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    temperature = fit_temperature(scores, truth)
    probabilities = softmax(scores, temperature)
    wrong = probabilities.argmax(axis=1) != truth
    measures = {
        "confidence": 1 - confidence_of(probabilities),
        "entropy": entropy(probabilities),
        "margin": 1 - margin(probabilities),
    }
    curve = risk_coverage(measures["confidence"], ~wrong)
    return Calibration(
        temperature=temperature,
        pictures=len(truth),
        before=quality(log_softmax(scores), truth),
        after=quality(cross_fitted(scores, truth), truth),
        risk_coverage=tuple(curve.points()),
        aurc=curve.area,
        wrong_detection={name: detection_auroc(v, wrong) for name, v in measures.items()},
        judged_on=judged_on,
    )


def calibrate_samples(logits: Floats, labels: Integers, temperature: float) -> SampledCalibration:
    """Measure the mean over samples' logits (N, S, K) against labels (N,).

    temperature: of a single pass.
    """
    before = quality(log_mean(logits, temperature), labels)
    return SampledCalibration(
        logits.shape[1], before, quality(cross_fitted(logits, labels), labels)
    )
