"""What `evaluate` found: the metrics, and what the uncertainty is worth."""

from dataclasses import dataclass
from typing import Any

from transferkit.evaluation.metrics import Evaluation
from transferkit.files.strict_json import to_plain


@dataclass(frozen=True)
class Measured:
    """An evaluation, and what the uncertainty is worth.

    kept: accuracy among the surest pictures, for each share kept. wrong_detection: AUROC of each
    measure as a test for a wrong prediction. missing: classes without pictures here. unknown:
    pictures per class that the model does not know; they count nowhere but in unlike_auroc, how
    well the score for unlike pictures tells them. sets: share of sets that hold the truth, and mean
    size; None without --coverage.
    """

    evaluation: Evaluation
    kept: tuple[dict[str, float], ...]
    wrong_detection: dict[str, float]
    missing: tuple[str, ...]
    unknown: dict[str, int]
    unlike_auroc: float
    sets: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        own = {name: to_plain(value) for name, value in vars(self).items() if name != "evaluation"}
        return self.evaluation.to_dict() | own
