"""What a pretraining run needs, where it stands, and how that is saved."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from transferkit.data.index import DatasetIndex
from transferkit.files.foreign_files import understood
from transferkit.pretraining.method import Method
from transferkit.pretraining.views import PretrainingViews
from transferkit.runs.folder import RunFolder
from transferkit.training.midway import random_state, set_random_state
from transferkit.training.schedules import Schedule

Optimizers = dict[str, torch.optim.Optimizer]


@dataclass
class Tally:
    """What the steps of an epoch add up to.

    steps: taken. sums: of what they showed, by name. seconds: that they took. lr: of the last.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    lr: float = 0.0

    def add(self, shown: Mapping[str, float]) -> None:
        """Count a step and what it showed."""
        self.steps += 1
        for name, figure in shown.items():
            self.sums[name] = self.sums.get(name, 0.0) + figure


@dataclass(frozen=True)
class PretrainingSettings:
    """What the loop needs of the configuration.

    epochs: of all phases together; with `budget_s` set (seconds) it is chosen from measured speed.
    optimizer, hyper: see `make_optimizer`. clipping: (row of CLIPPINGS, limit), or None.
    """

    batch_size: int
    epochs: int
    budget_s: float | None
    lr: float
    weight_decay: float
    schedule: Schedule
    optimizer: str
    hyper: Mapping[str, float]
    clipping: tuple[str, float] | None
    drop_last: bool
    seed: int


@dataclass
class PretrainingState:
    """Where a run stands: saved with every checkpoint, enough to continue bit for bit.

    phase, epoch: the next epoch to run, both from 0, the epoch counted within its phase. epochs:
    planned for every phase. seconds: trained so far. rows: of metrics.csv. midway: see `take_up`.
    """

    epochs: list[int]
    phase: int = 0
    epoch: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    midway: dict[str, Any] | None = None


@dataclass
class PretrainingRun:
    """Everything that the loop needs.

    index: pictures; "train" is learned from, "val" is measured on. measure: called after every
    epoch with the number of epochs run in all and of those planned; returns further figures of
    the row. autocast: makes the context of the arithmetic. resumed: optimisers' states of the
    checkpoint that the run goes on from.
    """

    method: Method
    index: DatasetIndex
    views: PretrainingViews
    settings: PretrainingSettings
    folder: RunFolder
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    measure: Callable[[int, int], Mapping[str, float]]
    state: PretrainingState
    resumed: dict[str, Any] | None = None

    @property
    def train(self) -> np.ndarray:
        """Positions of the pictures that are learned from."""
        return self.index.of_split("train")


def save(run: PretrainingRun, optimizers: Optimizers) -> None:
    """Write where the run stands, after all else, so that it is never ahead of it."""
    run.folder.write_metrics(run.state.rows)
    run.folder.save_checkpoint(
        "last",
        {
            "networks": run.method.networks.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in optimizers.items()},
            "state": asdict(run.state),
        },
    )


def continue_run(run: PretrainingRun) -> bool:
    """Put a run where its last checkpoint stands; False when there is none yet."""
    checkpoint = run.folder.load_checkpoint("last")
    if checkpoint is None:
        return False
    with understood(run.folder.path):
        try:
            run.method.networks.load_state_dict(checkpoint["networks"])
        except RuntimeError as error:  # of other shapes
            raise ValueError(str(error)) from error
        run.state = PretrainingState(**checkpoint["state"])
        run.resumed = checkpoint["optimizers"]
    return True


def save_midway(run: PretrainingRun, optimizers: Optimizers, tally: Tally) -> None:
    """Save where a run stands within an epoch, so that a long one need not begin again."""
    run.state.midway = {"random": random_state(run.device), "tally": asdict(tally)}
    save(run, optimizers)
    run.state.midway = None


def take_up(run: PretrainingRun) -> Tally:
    """Return where an epoch begins: at its start, or where the run was saved within it."""
    saved, run.state.midway = run.state.midway, None
    if saved is None:
        return Tally()
    set_random_state(saved["random"], run.device)
    return Tally(**saved["tally"])
