"""What a run of stages needs, and where it stands."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from transferkit.backbones.head import Classifier
from transferkit.runs.folder import CheckpointKind, RunFolder
from transferkit.stopwatch import Seconds, Stopwatch
from transferkit.training.budget import Budget, used_stages
from transferkit.training.cache_choice import UNDECIDED
from transferkit.training.material import Material
from transferkit.training.parts import Parts
from transferkit.training.schedules import Plateau
from transferkit.training.settings import Settings, loop_settings
from transferkit.training.solved import Solved
from transferkit.training.stages import PlannedStage, StagePlan
from transferkit.training.supervised import Objective, balanced_class_weights
from transferkit.training.updates import Rules

CHECKPOINT_SHARE = 0.05
"""Of the time, at most, for writing checkpoints while a stage runs."""


@dataclass
class RunState:
    """Where a run stands: saved with every checkpoint, enough to continue bit for bit.

    stage, epoch: the next epoch to run, both from 0. entered: the last stage that was begun: it is
    planned, and where it starts is saved, so none of this is done again. best: (metric to maximise,
    minus the loss) of the best epoch of the run; stage_best: of the current stage; start_best:
    before this stage.
    halvings: how often the current stage's learning rate was halved because it diverged, the last
    time at epoch `rewound_at`; divergences: what happened each time, in words. monitored: rows of
    monitoring.csv. plateau: of the performance schedule. seconds: spent when this was saved.
    epochs: of every stage, planned by a budget of time; empty without one. budget: what that has
    learned so far, None without one. base: the deepest boundary that is cached, see `choose_base`.
    midway: where a run that was saved within an epoch stands there, see
    `transferkit.training.midway`. solved: (metric, minus the loss) of the best solve. left_out:
    what leave-one-out says, see `left_out_figures`.
    """

    stage: int = 0
    epoch: int = 0
    entered: int = -1
    best: tuple[float, float] = (-math.inf, -math.inf)
    start_best: float = -math.inf
    stage_best: float = -math.inf
    epochs_without_gain: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    halvings: int = 0
    rewound_at: int = -1
    divergences: list[str] = field(default_factory=list)
    monitored: list[dict[str, Any]] = field(default_factory=list)
    plateau: Plateau = field(default_factory=Plateau)
    seconds: Seconds = field(default_factory=dict)
    epochs: list[float] = field(default_factory=list)
    budget: dict[str, Any] | None = None
    base: int | None = UNDECIDED
    midway: dict[str, Any] | None = None
    solved: tuple[float, float] | None = None
    left_out: dict[str, Any] | None = None

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunState":
        """Read what `asdict` made, today or in an earlier release."""
        within = values["epoch"] or values["halvings"] or values.get("midway")
        typed = {"best": tuple(values["best"]), "plateau": Plateau(**values["plateau"])}
        return RunState(**{"entered": values["stage"] - (not within), **values, **typed})

    def record(self, row: dict[str, Any], metric: str, min_delta: float) -> bool:
        """Take in an epoch's row; True when it is the best of the run."""
        value = measured(row, metric)
        gained = value > self.stage_best + min_delta
        self.epochs_without_gain = 0 if gained else self.epochs_without_gain + 1
        self.stage_best = max(self.stage_best, value)
        is_best = (value, -row["val_loss"]) > self.best
        if is_best:
            self.best = (value, -row["val_loss"])
        self.rows.append(row | {"best": int(is_best)})
        self.epoch += 1
        return is_best

    def next_stage(self) -> None:
        """Turn to the next stage; what it starts from becomes the value to beat."""
        self.stage += 1
        self.epoch = 0
        self.stage_best = -math.inf
        self.epochs_without_gain = 0
        self.halvings = 0
        self.rewound_at = -1


def measured(row: dict[str, Any], metric: str) -> float:
    """Return an epoch's value of the metric, to be high."""
    value: float = -row["val_loss"] if metric == "loss" else row[f"val_{metric}"]
    return value


def ranked(row: dict[str, Any], metric: str) -> tuple[float, float]:
    """Return what compares models on validation: the metric, of equal ones the lower loss."""
    return measured(row, metric), -row["val_loss"]


@dataclass
class Unsaved:
    """What has come about since checkpoints were written, so that they need not be in every epoch.

    checkpoints: kind -> copies of what belongs into it. again: the clock from when on writing is
    due again.
    """

    checkpoints: dict[CheckpointKind, dict[str, Any]] = field(default_factory=dict)
    again: float = -math.inf

    @property
    def is_due(self) -> bool:
        """Whether to write: it shall take no more than `CHECKPOINT_SHARE` of the time."""
        return time.monotonic() >= self.again

    def written(self, started: float) -> None:
        """Note that all has been written, since the clock said `started`."""
        self.checkpoints.clear()
        now = time.monotonic()
        self.again = now + (now - started) / CHECKPOINT_SHARE


@dataclass
class Run:
    """A run of stages: what it is built of, and where it stands.

    budget: of time, None for a plan that runs as it is. pretrained: name -> value of the backbone's
    parameters before the run, where l2_sp needs them. resumed: see `continue_run`. interpolation,
    interpolated: what `interpolate` tried, and the share that it took. solved: the solve that the
    run ends with, None where it ends with what the stages trained. stopped: why the run ended
    before its plan.
    """

    parts: Parts
    objective: Objective
    settings: Settings
    folder: RunFolder
    budget: Budget | None = None
    pretrained: dict[str, Tensor] = field(default_factory=dict)
    state: RunState = field(default_factory=RunState)
    resumed: dict[str, Any] | None = None
    interpolation: list[dict[str, Any]] = field(default_factory=list)
    interpolated: float | None = None
    solved: Solved | None = None
    stopped: str = ""
    unsaved: Unsaved = field(default_factory=Unsaved)

    @property
    def classifier(self) -> Classifier:
        """The network that the stages train."""
        return self.parts.classifier

    @property
    def model(self) -> Classifier:
        """The network that the run ends with."""
        return self.solved.classifier if self.solved else self.parts.classifier

    @property
    def plan(self) -> StagePlan:
        """The stages."""
        return self.parts.plan

    @property
    def material(self) -> Material:
        """What the run trains on."""
        return self.parts.material

    @property
    def fabric(self) -> Any:
        """Where and in which precision the run computes."""
        return self.parts.fabric

    @property
    def watch(self) -> Stopwatch:
        """What counts the run's time."""
        return self.parts.watch

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """The stages that caches are made for: all of the plan, or those a budget begins with."""
        return used_stages(self.plan.stages, self.budget)

    @property
    def epochs(self) -> list[float]:
        """The most epochs of every stage; with a budget of time, the last of one may be in part."""
        return self.state.epochs or [float(stage.epochs) for stage in self.plan.stages]


def make_run(parts: Parts, folder: RunFolder, budget: Budget | None = None) -> Run:
    """Put together what the loop needs; the classifier is as it starts."""
    settings = loop_settings(parts.config)
    pretrained = pretrained_parameters(parts, settings.rules)
    return Run(parts, make_objective(parts), settings, folder, budget, pretrained)


def under_l1(run: Run) -> list[str]:
    """Return the names of the model's weights that L1 draws to zero."""
    head, penalties = len(run.plan.groups), run.settings.rules.penalties
    return [
        name
        for name, weight in run.model.named_parameters()
        if penalties.l1_of(run.parts.column_of(name) == head, weight)
    ]


def make_objective(parts: Parts) -> Objective:
    """Return the loss of the configuration, with weights of the classes where it asks for them."""
    config, weights = parts.config, None
    if config.data.balance == "loss":
        labels = parts.index.labels[parts.material.train]
        weights = balanced_class_weights(labels, len(parts.index.classes))
    smoothing = config.training.label_smoothing
    return Objective(smoothing, weights, config.augment.mixup, config.augment.cutmix)


def pretrained_parameters(parts: Parts, rules: Rules) -> dict[str, Tensor]:
    """Return copies of the backbone's pretrained parameters by name; none without l2_sp."""
    if not rules.penalties.l2_sp:
        return {}
    kept = parts.config.backbone.reuse_blocks or len(parts.plan.groups)
    return {
        name: parameter.detach().clone()
        for name, parameter in parts.classifier.named_parameters()
        if parts.column_of(name) < kept
    }
