"""What a report shows, read from a run folder: figures, curves, pictures and their predictions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.config import Config, option_fields
from transferkit.data.shards import root_of
from transferkit.errors import UserError
from transferkit.evaluation.metrics import (
    ClassScores,
    ConfusedPair,
    class_scores,
    confusion_matrix,
    most_confused_pairs,
)
from transferkit.runs.folder import RunFolder

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A validation picture. answers: (class, probability), the most probable first; 1 or more."""

    path: str
    truth: str
    answers: tuple[tuple[str, float], ...]

    @property
    def is_right(self) -> bool:
        """Whether the prediction is correct."""
        return self.answers[0][0] == self.truth

    @property
    def probability(self) -> float:
        """The confidence: the probability of the predicted class."""
        return self.answers[0][1]

    @property
    def margin(self) -> float:
        """The highest probability minus the second."""
        return self.probability - (self.answers[1][1] if len(self.answers) > 1 else 0.0)


@dataclass(frozen=True)
class RunData:
    """The contents of a finished run's folder.

    summary, description, data, calibration: of summary.json, model.json, data.json and
    calibration.json (None in runs of older releases); learning: of learning.json, see
    `transferkit.finetuning.outlook.Outlook`, {} without. rows: of metrics.csv, see
    `with_gradients`. config: None where the recipe is missing or damaged; recipe: its text.
    """

    folder: Path
    summary: dict[str, Any]
    description: dict[str, Any]
    data: dict[str, Any]
    calibration: dict[str, Any] | None
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...]
    config: Config | None
    recipe: str
    learning: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return tuple(self.description["classes"])

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (K, K) on validation, row = label, column = prediction."""
        number = {name: k for k, name in enumerate(self.classes)}
        labels = np.array([number[p.truth] for p in self.pictures], dtype=np.int64)
        predicted = np.array([number[p.answers[0][0]] for p in self.pictures], dtype=np.int64)
        return confusion_matrix(labels, predicted, len(number))

    @cached_property
    def scores(self) -> tuple[ClassScores, ...]:
        """Precision, recall and F1 of every class."""
        return class_scores(self.confusion, self.classes)

    @property
    def confused(self) -> tuple[ConfusedPair, ...]:
        """The most frequent errors."""
        return most_confused_pairs(self.confusion, self.classes, 8)

    def confident_errors(self, number: int) -> list[Picture]:
        """Return the wrong predictions of the highest confidence."""
        wrong = [p for p in self.pictures if not p.is_right]
        return sorted(wrong, key=lambda p: -p.probability)[:number]

    def least_certain(self, number: int) -> list[Picture]:
        """Return the pictures of the smallest margin."""
        return sorted(self.pictures, key=lambda p: p.margin)[:number]

    def file(self, picture: Picture) -> Path | None:
        """Return where a picture lay when the run was made; None if that is unknown."""
        if self.config is None:
            return None
        source = self.config.data
        if source.manifest is not None:
            return (source.path or source.manifest.parent) / picture.path
        try:
            return root_of(source.path) / picture.path if source.path else None
        except UserError:  # a pattern that matches nothing any more
            return None


def gather(folder: RunFolder, config: Config | None, recipe: str) -> RunData:
    """Read a run folder. Raises UserError when the run is not finished, or damaged."""
    summary = folder.read_json("summary")
    if summary is None or not folder.has_model:
        raise UserError(
            f"{folder.path} is not finished: there is nothing to report yet",
            remedy=f"finish it first: transferkit finetune --resume {folder.path}",
        )
    data = RunData(
        folder.path,
        summary,
        folder.read_description(),
        folder.read_json("data") or {},
        folder.read_json("calibration"),
        with_gradients(folder.read_metrics(), folder.read_monitoring()),
        tuple(map(picture_of, folder.read_predictions())),
        config,
        recipe,
        folder.read_json("learning") or {},
    )
    if not data.pictures:
        raise UserError(f"{folder.path} holds no predictions of its validation pictures")
    named = {name for p in data.pictures for name in (p.truth, p.answers[0][0])}
    if unknown := sorted(named - set(data.classes)):
        where = "classes that it does not have: " + ", ".join(unknown[:5])
        raise UserError(f"the predictions in {folder.path} do not fit the model", where)
    return data


def with_gradients(rows: Sequence[Row], monitored: Iterable[Row]) -> tuple[Row, ...]:
    """Return every epoch's row with its monitored gradients as `grad_norm/<block group>`."""
    norms: dict[tuple[int, int], dict[str, Any]] = {}
    for row in monitored:
        if isinstance(norm := row.get("gradient_norm"), int | float):
            epoch = norms.setdefault((row["stage"], row["epoch"]), {})
            epoch[f"grad_norm/{row['group']}"] = norm
    return tuple({**row, **norms.get((row["stage"], row["epoch"]), {})} for row in rows)


def picture_of(row: Row) -> Picture:
    """Read a row of predictions.csv."""
    answers = [(row["label"], float(row["probability"]))]
    rank = 2
    while f"label_{rank}" in row:
        answers.append((row[f"label_{rank}"], float(row[f"probability_{rank}"])))
        rank += 1
    return Picture(row["path"], row["truth"], tuple(answers))


def changed_options(config: Config) -> list[tuple[str, Any, Any]]:
    """List (key, value, default) of all options that differ from their defaults."""
    options = ((o.key, attrgetter(o.key)(config), o.default) for o in option_fields())
    return [(key, value, default) for key, value, default in options if value != default]


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share of `count` pictures.

    Source: E. B. Wilson, "Probable Inference", JASA 22 (1927).
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return centre - half, centre + half
