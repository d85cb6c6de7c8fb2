"""A pretraining run: its parts, its state, and saving and restoring that."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from transferkit.backbones.create import Backbone
from transferkit.config import Config
from transferkit.data.index import DatasetIndex
from transferkit.files.foreign_files import understood
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Method
from transferkit.pretraining.views import PretrainingViews
from transferkit.runs.folder import RunFolder
from transferkit.training.midway import random_state, set_random_state
from transferkit.training.schedules import Schedule

Optimizers = dict[str, torch.optim.Optimizer]


@dataclass
class EpochTotals:
    """Running totals of an epoch.

    steps: done so far. sums: of their figures, by name. seconds: spent. lr: of the last step.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    lr: float = 0.0

    def add(self, figures: Mapping[str, float]) -> None:
        """Add a step and its figures."""
        self.steps += 1
        for name, figure in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + figure


@dataclass(frozen=True)
class PretrainingSettings:
    """The part of the configuration that the loop reads.

    epochs: of all phases together; with `budget_s` (seconds) they follow from the measured speed.
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
    """The progress of a run: saved with every checkpoint, enough to continue bit for bit.

    phase, epoch: the next epoch to run, both from 0, the epoch counted within its phase. epochs:
    planned for every phase. seconds: trained so far. rows: of metrics.csv. midway: see
    `save_midway`.
    """

    epochs: list[int]
    phase: int = 0
    epoch: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    midway: dict[str, Any] | None = None


@dataclass
class PretrainingSession:
    """The objects built from a configuration.

    index: pictures; the split "val" is held out. probe: labelled pictures for probes, if any.
    """

    config: Config
    index: DatasetIndex
    backbone: Backbone
    encoder: Encoder
    method: Method
    views: PretrainingViews
    fabric: Any
    probe: DatasetIndex | None

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.fabric.device
        return device


@dataclass
class PretrainingRun(PretrainingSession):
    """A session in its run folder.

    evaluate: called after every epoch with the numbers of finished and planned epochs; returns
    further figures of the row. resumed: state of the optimisers in the checkpoint being resumed.
    """

    settings: PretrainingSettings
    folder: RunFolder
    evaluate: Callable[[int, int], Mapping[str, float]]
    state: PretrainingState
    resumed: dict[str, Any] | None = None

    @property
    def train(self) -> np.ndarray:
        """Positions of the training pictures."""
        return self.index.of_split("train")


def save(run: PretrainingRun, optimizers: Optimizers) -> None:
    """Write the metrics, then the checkpoint, so that the checkpoint is never ahead."""
    run.folder.write_metrics(run.state.rows)
    checkpoint = {
        "networks": run.method.networks.state_dict(),
        "optimizers": {name: o.state_dict() for name, o in optimizers.items()},
        "state": asdict(run.state),
    }
    run.folder.save_checkpoint("last", checkpoint)


def continue_run(run: PretrainingRun) -> bool:
    """Restore a run from its last checkpoint; return False if there is none yet."""
    checkpoint = run.folder.load_checkpoint("last")
    if checkpoint is None:
        return False
    with understood(run.folder.path):
        try:
            run.method.networks.load_state_dict(checkpoint["networks"])
        except RuntimeError as error:  # other shapes
            raise ValueError(str(error)) from error
        run.state = PretrainingState(**checkpoint["state"])
        run.resumed = checkpoint["optimizers"]
    return True


def save_midway(run: PretrainingRun, optimizers: Optimizers, totals: EpochTotals) -> None:
    """Save a run within an epoch: also its random state and the epoch's totals so far."""
    run.state.midway = {"random": random_state(run.device), "tally": asdict(totals)}
    save(run, optimizers)
    run.state.midway = None


def epoch_start(run: PretrainingRun) -> EpochTotals:
    """Return empty totals, or restore those and the random state of a run saved midway."""
    saved, run.state.midway = run.state.midway, None
    if saved is None:
        return EpochTotals()
    set_random_state(saved["random"], run.device)
    return EpochTotals(**saved["tally"])
