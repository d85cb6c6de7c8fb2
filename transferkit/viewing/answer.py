"""From an uploaded picture to its prediction, uncertainty and saliency map."""

import itertools
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from transferkit.config import Predict
from transferkit.errors import UserError
from transferkit.files.atomic_write import write_atomically
from transferkit.inference.decide import DecisionRule, fit_rule
from transferkit.inference.members import Member, open_members
from transferkit.inference.pipeline import predictions
from transferkit.inference.rows import prediction_rows, ranked
from transferkit.inference.saliency import Run, choose_runs, overlay, saliency
from transferkit.inference.sampled import calibrated, decides
from transferkit.reporting.thumbnails import jpeg_uri
from transferkit.runs.folder import RunFolder

MEANINGS = {
    "entropy": "total uncertainty in nats; 0 is certain",
    "margin": "highest probability minus the second",
    "expected_entropy": "aleatoric uncertainty: ambiguity of the picture",
    "mutual_information": "epistemic uncertainty: of the model",
    "variation_ratio": "share of samples that predict another class",
    "ood": "above 1, the picture is out of distribution",
    "set": "contains the true class with the chosen coverage",
}


class Answerer:
    """A run that predicts single pictures. Close it: it has a temporary folder.

    Calls from several threads are serialised: the network's state, and the memory of a decoded
    picture, are of one picture at a time.
    """

    def __init__(self, folder: RunFolder, options: Predict) -> None:
        self.members: list[Member] = calibrated(
            open_members([folder], options, 1), options, measure=decides(options)
        )
        self.options = options
        self.rule: DecisionRule = fit_rule(self.members, options)
        self.maps, self.no_maps = _maps(self.members)
        self._folder = tempfile.TemporaryDirectory(prefix="transferkit-view-")
        self._one_at_a_time = threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names."""
        return self.members[0].loaded.classes

    def __enter__(self) -> "Answerer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._folder.cleanup()

    def __call__(self, picture: bytes) -> "Answer":
        """Predict a picture. Raises UserError when it cannot be read."""
        with self._one_at_a_time:
            path = Path(self._folder.name) / "picture"
            try:
                write_atomically(path, lambda file: file.write(picture))
                return self._answer(path)
            finally:
                path.unlink(missing_ok=True)

    def _answer(self, path: Path) -> "Answer":
        ((batch, prediction),) = predictions(self.members, [path], self.options)
        (picture,) = batch.pictures
        if prediction is None:
            raise UserError(f"this picture cannot be read: {picture.error}")
        (row,) = prediction_rows([""], prediction, self.rule, self.options, self.classes)
        image = ""
        if self.maps:
            evidence = saliency(self.members, self.maps, [picture], prediction.first_classes)
            image = jpeg_uri(overlay(picture.views[0][0], evidence[0]))
        return Answer(row, prediction.probabilities.shape[1], image)


def _maps(members: list[Member]) -> tuple[list[Run], str]:
    """Return how saliency maps are computed; or none, and the reason."""
    try:
        return choose_runs(members), ""
    except UserError as error:
        return [], error.what.removeprefix("--saliency: ")


@dataclass(frozen=True)
class Answer:
    """The prediction of a picture. image: the overlay as a data URI, or ""."""

    row: Mapping[str, Any]
    samples: int
    image: str = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of the page: answers, most probable first, and figures with meanings."""
        row, answers = self.row, []
        for rank in itertools.count(1):
            if ranked("label", rank) not in row:
                break
            names = ("label", "probability", "std")
            answers.append({name: row.get(ranked(name, rank)) for name in names})
        figures = [
            {"name": name.replace("_", " "), "value": _text(row[name]), "meaning": meaning}
            for name, meaning in MEANINGS.items()
            if name in row
        ]
        return {
            "answers": answers,
            "figures": figures,
            "samples": self.samples,
            "unlike": bool(row.get("unlike", False)),
            "abstain": bool(row.get("abstain", False)),
            "image": self.image,
        }


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
