"""The summary of a finished pretraining run: summary.json."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PretrainingSummary:
    """The result of a pretraining run. figures: of the last epoch. seconds: in total.

    stopped: why the run ended before its plan, "" where it did not.
    """

    run: Path
    method: str
    backbone: str
    pictures: int
    held_out: int
    epochs: int
    seconds: float
    figures: dict[str, float]
    files: dict[str, Path] = field(default_factory=dict)
    stopped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "run": str(self.run),
            "files": {n: str(p) for n, p in self.files.items()},
        }
