"""How good predictions are: every figure from one pass over scores and labels.

All of it follows from the K × K confusion matrix, the ranks and the log-probabilities, a line of
numpy each, so nothing heavier is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transferkit.strict_json import to_plain
from transferkit.training.summary import WeakClass

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class, 0..1; NaN where undefined (never predicted, no picture).

    support: number of pictures whose label it is.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ConfusedPair:
    """`count` pictures of class `label` were taken for `predicted`: `share` of that class."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Evaluation:
    """Predictions against labels.

    balanced_accuracy: mean recall of the classes that have pictures.
    macro_f1: mean F1 of the classes that occur as a label or as a prediction.
    top_k: k -> share of pictures whose label is among the k highest scores.
    log_loss: mean negative log-probability of the label, in nats.
    confusion: (K, K) counts, row = label, column = prediction.
    most_confused: pairs of classes, most frequent first.
    """

    classes: tuple[str, ...]
    count: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    top_k: dict[int, float]
    per_class: tuple[ClassScores, ...]
    confusion: Integers
    most_confused: tuple[ConfusedPair, ...]

    @property
    def headline(self) -> dict[str, float]:
        """The single figures, by name; `top_k` as top_3_accuracy and so on."""
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "log_loss": self.log_loss,
            **{f"top_{k}_accuracy": value for k, value in self.top_k.items()},
        }

    def weakest(self, number: int = 3) -> tuple[WeakClass, ...]:
        """Return the `number` classes with the lowest recall that have something to gain."""
        missed = [
            (scores.recall, -scores.support, position)
            for position, scores in enumerate(self.per_class)
            if scores.recall < 1  # False for NaN
        ]
        found = []
        for recall, _, position in sorted(missed)[:number]:
            row = self.confusion[position].copy()
            support, row[position] = int(row.sum()), 0
            taken_for = int(row.argmax())
            name, other = self.classes[position], self.classes[taken_for]
            found.append(WeakClass(name, recall, support, other, int(row[taken_for])))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it: lists, numbers, NaN as None."""
        return {name: to_plain(value) for name, value in vars(self).items()}


def evaluate_logits(
    logits: ArrayLike, labels: ArrayLike, classes: Sequence[str], top_k: Sequence[int] = (3, 5)
) -> Evaluation:
    """Evaluate (N, K) scores before softmax against (N,) labels 0..K-1; see `evaluate`."""
    scores = np.asarray(logits, dtype=np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True) if scores.size else scores
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return _evaluation(log_probabilities, np.asarray(labels, dtype=np.int64), classes, top_k)


def evaluate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    top_k: Sequence[int] = (3, 5),
) -> Evaluation:
    """Evaluate (N, K) probabilities against (N,) labels 0..K-1; K = len(classes), N >= 1.

    Classes may be absent from the labels. A zero counts as the smallest step of its float type in
    the log loss. top_k: those below K are computed; equal scores rank in the order of the classes.
    Raises ValueError for shapes or labels that do not fit.
    """
    given = np.asarray(probabilities)
    smallest = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    log_probabilities = np.log(np.maximum(given.astype(np.float64), smallest))
    return _evaluation(log_probabilities, np.asarray(labels, dtype=np.int64), classes, top_k)


def confusion_matrix(labels: Integers, predicted: Integers, num_classes: int) -> Integers:
    """Return the (K, K) counts, row = label, column = prediction, of two (N,) arrays."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def most_confused_pairs(
    confusion: Integers, classes: Sequence[str], number: int = 10
) -> tuple[ConfusedPair, ...]:
    """Return the most frequent errors of a (K, K) matrix; among equals the larger share first."""
    support = confusion.sum(axis=1)
    pairs = [
        ConfusedPair(classes[i], classes[j], int(confusion[i, j]), confusion[i, j] / support[i])
        for i, j in zip(*np.nonzero(confusion), strict=True)
        if i != j
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:number])


def _evaluation(
    log_probabilities: Floats, labels: Integers, classes: Sequence[str], top_k: Sequence[int]
) -> Evaluation:
    num_classes = len(classes)
    if log_probabilities.shape != (len(labels), num_classes) or not len(labels):
        raise ValueError(
            f"scores {log_probabilities.shape} do not fit {len(labels)} labels, "
            f"{num_classes} classes"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} with {num_classes} classes")
    order = np.argsort(-log_probabilities, axis=1, kind="stable")  # (N, K) NaN last
    confusion = confusion_matrix(labels, order[:, 0], num_classes)
    right = np.diag(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    recall, precision = _ratio(right, support), _ratio(right, predicted)
    f1 = _ratio(2 * right, support + predicted)
    columns = zip(classes, precision, recall, f1, support, strict=True)
    hits = order == labels[:, None]  # (N, K) the label's rank
    return Evaluation(
        classes=tuple(classes),
        count=len(labels),
        accuracy=float(right.sum() / len(labels)),
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)),
        log_loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        top_k={k: float(hits[:, :k].any(axis=1).mean()) for k in top_k if k < num_classes},
        per_class=tuple(
            ClassScores(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in columns
        ),
        confusion=confusion,
        most_confused=most_confused_pairs(confusion, classes),
    )


def _ratio(numerator: Integers, denominator: Integers) -> Floats:
    """Divide; NaN where the denominator is zero."""
    out = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
