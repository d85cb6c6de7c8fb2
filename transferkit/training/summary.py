"""What a finished run has to say about itself, as data: summary.json and the closing table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transferkit.evaluation.metrics import WeakClass
from transferkit.files.strict_json import to_plain


@dataclass(frozen=True)
class StageSummary:
    """How a stage went.

    epochs: how many ran. seconds: whole stage, with its caches and validation.
    seconds_per_epoch: of training alone, mean; pictures_per_second: training pictures in the same.
    best_accuracy: best on validation, 0..1. reason: "finished", "stopped early", "skipped: ...".
    clipped: share of the steps whose gradients were clipped, 0..1; None without clipping.
    parts: seconds by part of the work ("pictures", "trunk", "training", ...).
    """

    name: str
    epochs: int
    seconds: float
    seconds_per_epoch: float
    pictures_per_second: float
    cached: bool
    best_accuracy: float
    reason: str = "finished"
    clipped: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """A whole run. metrics: of the best weights on validation (accuracy, log_loss, ...).

    head_only_accuracy: what the head-only stage reached, None when there was none.
    seconds: from the start of the command, and of those before it that it resumed. parts: the same
    by part of the work, stages included. files: what lies where.
    wise_ft: share of the way from before unfreezing to after it, None without interpolation.
    diagnosis: what went wrong inside the network, and what to try; empty when nothing was seen.
    """

    run: Path
    backbone: str
    metrics: dict[str, float]
    head_only_accuracy: float | None
    stages: tuple[StageSummary, ...]
    classes: int
    train_pictures: int
    val_pictures: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    weak_classes: tuple[WeakClass, ...] = ()
    files: dict[str, Path] = field(default_factory=dict)
    diagnosis: tuple[str, ...] = ()
    wise_ft: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them: paths as text, NaN as None."""
        return {name: to_plain(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class PlanRow:
    """A stage before it runs, as `transferkit plan` shows it.

    lr_by_group: peak learning rate of every block group from the stem to the head; 0 is frozen.
    epochs: at most; the last one of a budget of time may be in part.
    cache_bytes: what the stage keeps on disk, 0 when it trains live. seconds: expected, caches
    included; None when it was not measured.
    """

    name: str
    epochs: float
    lr_by_group: dict[str, float]
    trainable_parameters: int
    total_parameters: int
    cache_bytes: int
    seconds: float | None = None
    if_improving: bool = False
