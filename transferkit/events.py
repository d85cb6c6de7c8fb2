"""What happens during a run, as data: the loop yields these, everything else consumes them."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")

NOT_FIGURES = frozenset({"phase", "phase_name", "epoch", "lr", "seconds", "seconds_measuring"})
"""Columns of a pretraining run's metrics.csv that are not figures of the epoch."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of the work called `what`: pictures, views, steps."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Working:
    """Work of unknown length begins; it ends with the next `Working` or `Progress`."""

    what: str


@dataclass(frozen=True)
class Notice:
    """A message for the user; `warning` if something may need attention."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class StageStarted:
    """A stage begins. stage: position in the plan, from 0. lr: the head's peak learning rate."""

    stage: int
    name: str
    epochs: int
    lr: float
    trainable_parameters: int
    total_parameters: int
    cached: bool


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is over. epoch: from 1. metrics: column of metrics.csv -> value.

    `metrics` holds train_loss, train_accuracy, val_loss, val_accuracy, val_balanced_accuracy,
    seconds and one `lr/<block group>` for every group that trains. is_best: best of the whole run.
    """

    stage: int
    stage_name: str
    epoch: int
    metrics: dict[str, float] = field(default_factory=dict)
    is_best: bool = False


@dataclass(frozen=True)
class StageEnded:
    """A stage is over. reason: "finished", "stopped early" or "skipped: ..."."""

    stage: int
    name: str
    epochs_run: int
    best_value: float
    seconds: float
    reason: str


@dataclass(frozen=True)
class PretrainingEpoch:
    """An epoch of pretraining is over and saved. epoch: from 1. figures: the row of metrics.csv."""

    epoch: int
    epochs: int
    phase: str
    figures: dict[str, float] = field(default_factory=dict)


Event = Progress | Working | Notice | StageStarted | EpochEnded | StageEnded | PretrainingEpoch

Show = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""


def drain(events: Generator[Event, None, Result], show: Show) -> Result:
    """Show all events of a generator and return its result."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: Result = end.value
            return result
        show(event)
