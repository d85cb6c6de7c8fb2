"""The result of `evaluate`: the metrics, and how well the uncertainty works."""

from dataclasses import dataclass
from typing import Any

from transferkit.evaluation.metrics import Evaluation
from transferkit.files.strict_json import to_plain


@dataclass(frozen=True)
class Measured:
    """An evaluation, and how well the uncertainty works.

    kept: accuracy among the most certain pictures, for each share kept. wrong_detection: AUROC of
    each uncertainty measure as a detector of wrong predictions. missing: classes without pictures.
    unknown: class -> number of pictures, for classes that the model does not have; they count only
    in unlike_auroc, the AUROC of the out-of-distribution score as their detector. sets: coverage
    and mean size of the prediction sets; None without --coverage.
    """

    evaluation: Evaluation
    kept: tuple[dict[str, float], ...]
    wrong_detection: dict[str, float]
    missing: tuple[str, ...]
    unknown: dict[str, int]
    unlike_auroc: float
    sets: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the evaluation's and these in one dictionary."""
        fields = {n: to_plain(value) for n, value in vars(self).items() if n != "evaluation"}
        return self.evaluation.to_dict() | fields
