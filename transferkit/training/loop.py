"""The training loop: stages, epochs and steps, as one generator of events."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.head import Classifier
from transferkit.data.loader import epoch_order, epoch_views
from transferkit.errors import UserError
from transferkit.run_folder import CheckpointKind, RunFolder
from transferkit.training.averaging import MovingAverage, averaged, moving_average
from transferkit.training.events import EpochEnded, Event, Progress, StageEnded, StageStarted
from transferkit.training.optimizers import OPTIMIZERS, parameter_groups, set_learning_rate
from transferkit.training.schedules import SCHEDULES, with_warmup
from transferkit.training.sources import Material, Source, Sources
from transferkit.training.stages import PlannedStage, StagePlan, apply_stage
from transferkit.training.supervised import Objective


@dataclass(frozen=True)
class Settings:
    """What the loop needs of the configuration. metric: "accuracy", "balanced_accuracy", "loss"."""

    batch_size: int
    weight_decay: float
    warmup: float
    patience: int
    min_delta: float
    metric: str
    balance: str
    seed: int
    ema: float = 0.0


@dataclass
class RunState:
    """Where a run stands: saved with every checkpoint, enough to continue bit for bit.

    stage, epoch: the next epoch to run, both from 0. best: (metric to maximise, minus the loss) of
    the best epoch of the run; stage_best: of the current stage; start_best: before this stage.
    """

    stage: int = 0
    epoch: int = 0
    best: tuple[float, float] = (-math.inf, -math.inf)
    start_best: float = -math.inf
    stage_best: float = -math.inf
    epochs_without_gain: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunState":
        """Read what `asdict` made."""
        return RunState(**{**values, "best": tuple(values["best"])})

    def record(self, row: dict[str, Any], metric: str, min_delta: float) -> bool:
        """Take in an epoch's row; True when it is the best of the run."""
        value = -row["val_loss"] if metric == "loss" else row[f"val_{metric}"]
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


@dataclass
class Run:
    """Everything a run of stages needs. state, resumed: see `continue_run`."""

    classifier: Classifier
    plan: StagePlan
    sources: Sources
    objective: Objective
    settings: Settings
    fabric: Any
    folder: RunFolder
    group_of: Callable[[str], int]
    state: RunState = field(default_factory=RunState)
    resumed: dict[str, Any] | None = None

    @property
    def material(self) -> Material:
        """What the run trains on."""
        return self.sources.material


def fit(run: Run) -> Iterator[Event]:
    """Run every stage of the plan from where `run.state` stands; yield what happens.

    Every stage starts from the best weights so far, and the classifier ends with the best of all.
    """
    state = run.state
    while state.stage < len(run.plan.stages):
        stage = run.plan.stages[state.stage]
        if state.epoch == 0:
            if stage.if_improving and state.best[0] <= state.start_best + run.settings.min_delta:
                reason = "skipped: the stage before did not improve validation"
                state.skipped.append(stage.name)
                yield StageEnded(state.stage, stage.name, 0, state.best[0], 0.0, reason)
                state.next_stage()
                continue
            if state.rows:
                save_start(run)
            state.start_best = state.best[0]
        yield from train_stage(run, stage)
        restore(run, "best")
        state.next_stage()


def train_stage(run: Run, stage: PlannedStage) -> Iterator[Event]:
    """Train one stage until its epochs are over or validation stops improving."""
    state, settings = run.state, run.settings
    started = time.perf_counter()
    source = yield from run.sources.open(stage)
    apply_stage(run.classifier, run.group_of, stage)
    named = list(run.classifier.named_parameters())
    groups = parameter_groups(named, run.group_of, stage.multipliers, settings.weight_decay)
    optimizer = OPTIMIZERS["adamw"](groups, stage.lr)
    trains = sum(p.numel() for _, p in named if p.requires_grad)
    total = sum(p.numel() for _, p in named)
    network, optimizer = run.fabric.setup(source.network, optimizer)
    average = moving_average(run.classifier, run.group_of, stage, settings.ema)
    if run.resumed is not None:
        optimizer.load_state_dict(run.resumed["optimizer"])
        if average is not None:
            average.load_state_dict(run.resumed["average"])
        run.resumed = None
    yield StageStarted(
        state.stage, stage.name, stage.epochs, stage.lr, trains, total, source.cached
    )
    while state.epoch < stage.epochs and state.epochs_without_gain < settings.patience:
        row = yield from train_epoch(run, stage, source, network, (optimizer, average))
        with averaged(average):  # what is evaluated is what is kept
            row |= validate(run, source, network)
            is_best = state.record(row, settings.metric, settings.min_delta)
            run.folder.write_metrics(state.rows)
            if is_best:
                save_best(run)
        save_last(run, optimizer, average)
        yield EpochEnded(state.stage, stage.name, state.epoch, row, is_best)
    reason = "finished" if state.epoch >= stage.epochs else "stopped early"
    seconds = time.perf_counter() - started
    yield StageEnded(state.stage, stage.name, state.epoch, state.stage_best, seconds, reason)


def train_epoch(
    run: Run,
    stage: PlannedStage,
    source: Source,
    network: nn.Module,
    updated: tuple[Any, MovingAverage | None],
) -> Generator[Event, None, dict[str, Any]]:
    """Visit the training set once; return the epoch's row of metrics.csv, not yet validated.

    updated: by every step, the optimiser and the moving average of the weights.
    """
    optimizer, average = updated
    epoch, settings, material = run.state.epoch, run.settings, run.material
    labels = material.index.labels[material.train]
    seed = settings.seed + 1000 * (run.state.stage + 1)
    order = epoch_order(labels, settings.balance, seed, epoch)
    turn = epoch if source.num_views else len(run.state.rows)  # new views also after other stages
    views = epoch_views(len(labels), source.num_views, seed, turn)
    picks = batches(order, settings.batch_size)
    generator = np.random.default_rng([seed, epoch, 3])
    torch.manual_seed(seed * 100_003 + epoch)  # dropout and drop-path have no other generator
    apply_stage(run.classifier, run.group_of, stage)
    started = time.perf_counter()
    loss_sum, num_right, steps = 0.0, 0, len(picks)
    inputs = source.train_inputs((pick, views[pick]) for pick in picks)
    for step, (pick, batch) in enumerate(zip(picks, inputs, strict=True)):
        progress = (epoch * steps + step + 0.5) / (stage.epochs * steps)  # the middle of the step
        factor = with_warmup(SCHEDULES["cosine"], progress, settings.warmup)
        set_learning_rate(optimizer, stage.lr * factor)
        target = torch.from_numpy(labels[pick]).to(run.fabric.device)
        batch = to_device(batch, run.fabric.device)
        loss, logits = run.objective.loss(network, batch, target, generator)
        optimizer.zero_grad(set_to_none=True)
        run.fabric.backward(loss)
        optimizer.step()
        if average is not None:
            average.update()
        loss_sum += checked(loss.item(), stage, epoch, step) * len(pick)
        num_right += int((logits.argmax(dim=1) == target).sum())
        if not source.cached:
            yield Progress(f"epoch {epoch + 1}", step + 1, steps)
    seconds = time.perf_counter() - started
    rates = {
        f"lr/{(*run.plan.groups, 'head')[g['column']]}": g["lr"] for g in optimizer.param_groups
    }
    return {
        "stage": run.state.stage,
        "stage_name": stage.name,
        "epoch": epoch + 1,
        "train_loss": loss_sum / len(order),
        "train_accuracy": num_right / len(order),
        "seconds": seconds,
        "cached": int(source.cached),
        **rates,
    }


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an epoch's order (N,) into batches; a single left-over picture joins the last one.

    Batch normalisation cannot train on one value per channel.
    """
    picks = [order[i : i + size] for i in range(0, len(order), size)]
    if size > 1 and len(picks) > 1 and len(picks[-1]) == 1:
        picks[-2:] = [np.concatenate(picks[-2:])]
    return picks


def checked(loss: float, stage: PlannedStage, epoch: int, step: int) -> float:
    """Return the loss if it is a number, else say where the run diverged."""
    if math.isfinite(loss):
        return loss
    raise UserError(
        f"the loss became {loss} in stage {stage.name}, epoch {epoch + 1}, step {step + 1}",
        f"the head's peak learning rate there is {stage.lr:g}",
        "lower --lr or --unfrozen-lr; the best weights before are kept in the run folder",
    )


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """Move a batch; pictures and activation maps (N, C, H, W) become channels last."""
    if batch.ndim == 4:
        return batch.to(device, memory_format=torch.channels_last)
    return batch.to(device)


@torch.no_grad()
def validate(run: Run, source: Source, network: nn.Module) -> dict[str, float]:
    """Return loss, accuracy and balanced accuracy on the validation set, in evaluation mode."""
    started = time.perf_counter()
    run.classifier.eval()
    outputs = [network(to_device(b, run.fabric.device)).float().cpu() for b in source.val_inputs()]
    logits = torch.cat(outputs)
    labels = torch.from_numpy(run.material.index.labels[run.material.val])
    right = (logits.argmax(dim=1) == labels).double()
    recalls = [right[labels == k].mean() for k in labels.unique()]
    return {
        "val_loss": float(nn.functional.cross_entropy(logits, labels)),
        "val_accuracy": float(right.mean()),
        "val_balanced_accuracy": float(torch.stack(recalls).mean()),
        "seconds_validation": time.perf_counter() - started,
    }


def trained_tensors(run: Run) -> dict[str, Tensor]:
    """Return the tensors that any stage up to the current one may have changed."""
    lowest = min(stage.boundary for stage in run.plan.stages[: run.state.stage + 1])
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in run.classifier.state_dict().items()
        if run.group_of(name) >= lowest
    }


def save_best(run: Run) -> None:
    """Write the weights as they are as the best so far."""
    run.folder.save_checkpoint("best", {"model": trained_tensors(run)})


def save_last(run: Run, optimizer: Any = None, average: MovingAverage | None = None) -> None:
    """Write where the run stands, after all else, so that it is never ahead of it."""
    values = {
        "model": trained_tensors(run),
        "optimizer": optimizer and optimizer.state_dict(),
        "average": average and average.state_dict(),
        "state": asdict(run.state),
    }
    run.folder.save_checkpoint("last", values)


def save_start(run: Run) -> None:
    """Save where a later stage starts: it may change more than the checkpoints hold so far.

    From here on the run continues from these weights, not from the best checkpoint, which may
    already be of this stage's first epoch when the run is killed before that one's `last`.
    """
    save_best(run)
    save_last(run)


def restore(run: Run, kind: CheckpointKind) -> dict[str, Any]:
    """Put a checkpoint's tensors into the classifier and return the checkpoint."""
    checkpoint = run.folder.load_checkpoint(kind)
    if checkpoint is None:
        raise UserError(f"{run.folder.path} has no {kind} checkpoint", "", "start the run again")
    run.classifier.load_state_dict(checkpoint["model"], strict=False)
    return checkpoint


def continue_run(run: Run) -> bool:
    """Put a run where its last checkpoint stands; False when there is none yet.

    Weights come back before any cache is opened, because caches depend on them.
    """
    if run.folder.load_checkpoint("last") is None:
        return False
    checkpoint = restore(run, "last")
    run.state = RunState.from_dict(checkpoint["state"])
    run.resumed = checkpoint if checkpoint["optimizer"] else None
    return True
