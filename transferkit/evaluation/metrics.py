"""Classification metrics: every figure from one pass over logits or probabilities and labels.

The definitions are scikit-learn's; what it lacks (calibration, selective prediction) has modules
of its own. Classes without pictures, and pictures of a single class, are no error: metrics that are
undefined for them are NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sklearn_metrics

from transferkit.evaluation.reliability import (
    brier_score,
    calibration_error,
    confidence_of,
    log_softmax,
    reliability_bins,
)
from transferkit.evaluation.selective import risk_coverage
from transferkit.files.strict_json import to_plain

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SINGLE_FIGURES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc", "average_precision"),
    *("log_loss", "brier", "ece", "ece_equal_mass", "aurc"),
)


@dataclass(frozen=True)
class WeakClass:
    """A class of low recall over its `support` pictures.

    confused_with: the class most often predicted instead, `confused_count` times.
    """

    name: str
    recall: float
    support: int
    confused_with: str
    confused_count: int


@dataclass(frozen=True)
class ClassScores:
    """Metrics of one class, 0..1; NaN where undefined (never predicted, no picture).

    support: number of pictures with this label. auroc, average_precision: of the class against all
    others, by its probability.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    auroc: float = float("nan")
    average_precision: float = float("nan")


@dataclass(frozen=True)
class ConfusedPair:
    """`count` pictures of class `label` were predicted as `predicted`: `share` of that class.

    examples: paths of some of them, the most confident first.
    """

    label: str
    predicted: str
    count: int
    share: float
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Predictions against labels.

    balanced_accuracy: mean recall of the classes that have pictures.
    macro_f1: mean F1 of the classes that occur as a label or as a prediction; weighted_f1: weighted
        by their pictures.
    top_k: k -> share of pictures whose label is among the k highest scores.
    log_loss: mean negative log-probability of the label, in nats.
    auroc, average_precision: one against all others, mean over the classes that have pictures.
    brier: mean squared distance between the probabilities and the one-hot label, 0..2.
    ece, ece_equal_mass: expected calibration error over bins of equal width, of equal mass.
    aurc: area under the risk-coverage curve, by confidence.
    intervals: metric -> (low, high) of its 95 % bootstrap interval; {} unless computed.
    confusion: (K, K) counts, row = label, column = prediction.
    most_confused: pairs of classes, most frequent first.
    """

    classes: tuple[str, ...]
    count: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    weighted_f1: float
    log_loss: float
    auroc: float
    average_precision: float
    brier: float
    ece: float
    ece_equal_mass: float
    aurc: float
    top_k: dict[int, float]
    per_class: tuple[ClassScores, ...]
    confusion: Integers
    most_confused: tuple[ConfusedPair, ...]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def headline(self) -> dict[str, float]:
        """All scalar metrics, by name; `top_k` as top_3_accuracy and so on."""
        return {
            **{name: getattr(self, name) for name in SINGLE_FIGURES},
            **{f"top_{k}_accuracy": value for k, value in self.top_k.items()},
        }

    def weakest(self, number: int = 3) -> tuple[WeakClass, ...]:
        """Return the `number` classes with the lowest recall below 1."""
        missed = [k for k, scores in enumerate(self.per_class) if scores.recall < 1]  # not NaN
        missed.sort(key=lambda k: (self.per_class[k].recall, -self.per_class[k].support))
        weakest = []
        for k in missed[:number]:
            scores, errors = self.per_class[k], self.confusion[k].copy()
            errors[k] = 0
            other, count = self.classes[errors.argmax()], int(errors.max())
            weakest.append(WeakClass(scores.name, scores.recall, scores.support, other, count))
        return tuple(weakest)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: lists, numbers, NaN as None."""
        return {name: to_plain(value) for name, value in vars(self).items()}


def evaluate_logits(
    logits: ArrayLike, labels: ArrayLike, classes: Sequence[str], top_k: Sequence[int] = (3, 5)
) -> Evaluation:
    """Evaluate logits (N, K) against labels (N,) 0..K-1; see `evaluate`."""
    return _evaluation(log_softmax(logits), np.asarray(labels, dtype=np.int64), classes, top_k)


def evaluate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    top_k: Sequence[int] = (3, 5),
) -> Evaluation:
    """Evaluate probabilities (N, K) against labels (N,) 0..K-1; K = len(classes), N >= 1.

    Classes may be absent from the labels. In the log loss, a zero is clipped to the machine epsilon
    of its float type. top_k: values below K are computed; ties rank in the order of the classes.
    Raises ValueError for shapes or labels that do not match.
    """
    given = np.asarray(probabilities)
    smallest = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    log_probabilities = np.log(np.maximum(given.astype(np.float64), smallest))
    return _evaluation(log_probabilities, np.asarray(labels, dtype=np.int64), classes, top_k)


def confusion_matrix(labels: Integers, predicted: Integers, num_classes: int) -> Integers:
    """Return counts (K, K), row = label, column = prediction, of two arrays (N,)."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def most_confused_pairs(
    confusion: Integers, classes: Sequence[str], number: int = 10
) -> tuple[ConfusedPair, ...]:
    """Return the most frequent errors of a (K, K) matrix; ties by the larger share of the class."""
    support = confusion.sum(axis=1)
    pairs = [
        ConfusedPair(classes[i], classes[j], int(confusion[i, j]), confusion[i, j] / support[i])
        for i, j in zip(*np.nonzero(confusion), strict=True)
        if i != j
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:number])


def class_scores(confusion: Integers, classes: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return precision, recall and F1 of every class of a (K, K) matrix."""
    right, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):  # NaN where there is nothing to divide
        precision, recall = right / predicted, right / support
        f1 = 2 * right / (support + predicted)
    columns = zip(classes, precision, recall, f1, support, strict=True)
    return tuple(
        ClassScores(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in columns
    )


def ranking_scores(probabilities: Floats, labels: Integers) -> tuple[Floats, Floats]:
    """Return AUROC and average precision (K,) of every class against all others.

    NaN without positives, AUROC also without negatives. probabilities: (N, K). labels: (N,).
    """
    num_classes = probabilities.shape[1]
    auroc, precision = np.full(num_classes, np.nan), np.full(num_classes, np.nan)
    for k in np.unique(labels):
        positive, scores = labels == k, probabilities[:, k]
        precision[k] = sklearn_metrics.average_precision_score(positive, scores)
        if not positive.all():
            auroc[k] = sklearn_metrics.roc_auc_score(positive, scores)
    return auroc, precision


def _evaluation(
    log_probabilities: Floats, labels: Integers, classes: Sequence[str], top_k: Sequence[int]
) -> Evaluation:
    num_classes = len(classes)
    shape, count = log_probabilities.shape, len(labels)
    if shape != (count, num_classes) or not count:
        raise ValueError(f"scores {shape} do not fit {count} labels, {num_classes} classes")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} with {num_classes} classes")
    order = np.argsort(-log_probabilities, axis=1, kind="stable")  # (N, K), NaN last
    confusion = confusion_matrix(labels, order[:, 0], num_classes)
    per_class = class_scores(confusion, classes)
    hits = order == labels[:, None]  # (N, K), one-hot rank of the label
    probabilities = np.exp(log_probabilities)
    confidence, correct = confidence_of(probabilities), hits[:, 0]
    auroc, precision = ranking_scores(probabilities, labels)
    f1 = np.array([scores.f1 for scores in per_class])
    support = confusion.sum(axis=1)
    return Evaluation(
        classes=tuple(classes),
        count=count,
        accuracy=float(correct.mean()),
        balanced_accuracy=float(np.nanmean([scores.recall for scores in per_class])),
        macro_f1=float(np.nanmean(f1)),
        weighted_f1=float(f1[support > 0] @ support[support > 0] / count),
        log_loss=float(-log_probabilities[np.arange(count), labels].mean()),
        auroc=_mean(auroc),
        average_precision=_mean(precision),
        brier=brier_score(probabilities, labels),
        ece=calibration_error(reliability_bins(confidence, correct)),
        ece_equal_mass=calibration_error(reliability_bins(confidence, correct, "mass")),
        aurc=risk_coverage(1 - confidence, correct).area,
        top_k={k: float(hits[:, :k].any(axis=1).mean()) for k in top_k if k < num_classes},
        per_class=tuple(
            replace(scores, auroc=float(a), average_precision=float(p))
            for scores, a, p in zip(per_class, auroc, precision, strict=True)
        ),
        confusion=confusion,
        most_confused=most_confused_pairs(confusion, classes),
    )


def with_examples(
    evaluation: Evaluation,
    probabilities: Floats,
    labels: Integers,
    paths: Sequence[str],
    number: int = 3,
) -> Evaluation:
    """Return the evaluation with paths of the most confident errors of each confused pair.

    probabilities: (N, K). labels: (N,). paths: N.
    """
    predicted, confidence = probabilities.argmax(axis=1), confidence_of(probabilities)
    class_index = {name: k for k, name in enumerate(evaluation.classes)}
    pairs = []
    for pair in evaluation.most_confused:
        label, wrong = class_index[pair.label], class_index[pair.predicted]
        errors = np.flatnonzero((labels == label) & (predicted == wrong)).tolist()
        most_confident = sorted(errors, key=lambda n: -confidence[n])[:number]
        pairs.append(replace(pair, examples=tuple(paths[n] for n in most_confident)))
    return replace(evaluation, most_confused=tuple(pairs))


def _mean(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
