"""The training loop: stages, epochs and steps, as one generator of events."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.backbones.devices import to_device
from transferkit.backbones.norm_statistics import has_statistics, recalibrate
from transferkit.events import EpochEnded, Event, Progress, StageEnded, StageStarted
from transferkit.stopping import between_steps
from transferkit.stopwatch import OUTSIDE
from transferkit.training.averaging import EpochAverage, averaged
from transferkit.training.checkpoints import (
    continue_updater,
    first_unfreezing,
    restore,
    save_before,
    save_best,
    save_last,
    save_start,
)
from transferkit.training.compiling import Forward, compiled
from transferkit.training.divergence import Diverged, checked, halved, rewind
from transferkit.training.memory import shares
from transferkit.training.midway import Tally, is_time, save_midway, seconds_before, take_up
from transferkit.training.monitor import Monitor, loss_scale, watch
from transferkit.training.optimizers import set_rates
from transferkit.training.picks import batches, clean_epochs, cut_short, epoch_picks, own_shares
from transferkit.training.profiling import profiled
from transferkit.training.run import Run, measured
from transferkit.training.schedules import Plateau
from transferkit.training.sharded import updater_of
from transferkit.training.solving import UNCHANGED, is_solved, solve_stage
from transferkit.training.sources import Source, open_source
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.training.supervised import accuracies
from transferkit.training.updates import Updater

SMALLEST_PART = 2
"""Pictures of a batch that are computed together at least: batch norm needs two."""

NO_TIME = "no time is left for it"
NOT_IMPROVED = "the stage before did not improve validation"


def fit(run: Run) -> Generator[Event, None, None]:
    """Run every stage of the plan from where `run.state` stands; yield what happens.

    Every stage starts from the best weights so far, and the classifier ends with the best of all.
    """
    state = run.state
    while state.stage < len(run.plan.stages):
        stage = run.plan.stages[state.stage]
        run.watch.enter(state.stage)
        if why := why_skipped(run, stage):
            yield skipped(run, stage, why)
            state.next_stage()
            continue
        if stage.solves:
            yield from solve_stage(run, stage)
            continue
        yield from train_stage(run, stage)
        with run.watch.on("checkpoint"):
            restore(run, "best")
        state.next_stage()
        if not run.settings.schedule.whole_run:
            state.plateau = Plateau()
    run.watch.enter(OUTSIDE)


def why_skipped(run: Run, stage: PlannedStage) -> str:
    """Return why a stage does not run, or ""; a stage of gradient steps is then entered."""
    if stage.solves:
        return UNCHANGED if is_solved(run, stage) else ""
    return enter(run, stage) if run.state.entered < run.state.stage else ""


def enter(run: Run, stage: PlannedStage) -> str:
    """Plan a stage and save where it starts, once in a run; or return why it does not run.

    The weights are the best so far, and what is saved says that the stage is entered.
    """
    state = run.state
    if run.budget is not None:
        state.epochs = run.budget.plan_from(state.stage, state.epochs, run.watch.total())
    if not run.epochs[state.stage]:
        return NO_TIME
    if stage.if_improving and state.best[0] <= state.start_best + run.settings.min_delta:
        return NOT_IMPROVED
    state.entered, state.start_best = state.stage, state.best[0]
    with run.watch.on("checkpoint"):
        if run.settings.wise_ft is not None and first_unfreezing(run):
            save_before(run)
        if state.rows or run.settings.on_divergence == "rewind":
            save_start(run)
    return ""


def skipped(run: Run, stage: PlannedStage, why: str) -> StageEnded:
    """Note that a stage does not run."""
    run.state.skipped.append(stage.name)
    best = run.state.best[0]
    return StageEnded(run.state.stage, stage.name, 0, best, 0.0, f"skipped: {why}")


def train_stage(run: Run, stage: PlannedStage) -> Iterator[Event]:
    """Train one stage until its epochs are over or validation stops improving."""
    state, settings = run.state, run.settings
    started = time.perf_counter()
    opened_s = run.watch.total()
    clean_first = state.epoch < clean_epochs(run)
    source = yield from open_source(run.parts, stage, state.base, clean_first)
    if run.budget is not None and state.stage == 0 and not run.budget.ready_s:
        run.budget.learn_setup(run.watch.total() - opened_s, run.watch.total())
    apply_stage(run.classifier, run.parts.column_of, stage)
    parameters = list(run.classifier.parameters())
    trains = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    updater = updater_of(run, stage, source.network)
    continue_updater(run, updater)
    monitor = watch(
        updater.classifier, run.plan.columns, run.parts.column_of, loss_scale(run.fabric)
    )
    forward = forward_of(run, source.network, updater, monitor)
    epochs = math.ceil(run.epochs[state.stage])
    yield StageStarted(state.stage, stage.name, epochs, stage.lr, trains, total, source.cached)
    begun_s = run.watch.total() - seconds_before(state.midway)
    while state.epoch < run.epochs[state.stage] and state.epochs_without_gain < patience_of(run):
        if source.rest is not None and state.epoch >= clean_epochs(run):
            yield from source.rest()
            source = replace(source, rest=None)
        try:
            with run.watch.on("training"):
                row = yield from train_epoch(run, stage, source, updater, monitor, forward)
                updater.end_epoch(state.epoch)
                yield from forward.notices()
            with averaged(updater.average):  # what is evaluated is what is kept
                is_best = evaluate(run, source, updater, row)
                state.monitored += [stage_and_epoch(row) | read for read in monitor.rows()]
                if is_best or not settings.restore_best:
                    with run.watch.on("checkpoint"):
                        save_best(run)
        except Diverged as problem:
            yield rewind(run, stage, updater, problem)
            continue
        begun_s = correct_plan(run, row["seconds"], begun_s)
        with run.watch.on("checkpoint"):
            save_last(run, updater)
        yield EpochEnded(state.stage, stage.name, state.epoch, row, is_best)
    reason = "finished" if state.epoch >= run.epochs[state.stage] else "stopped early"
    seconds = time.perf_counter() - started
    yield StageEnded(state.stage, stage.name, state.epoch, state.stage_best, seconds, reason)


def forward_of(run: Run, network: nn.Module, updater: Updater, monitor: Monitor) -> Forward:
    """Return what the steps of a stage call: the updater's network, or what torch compiles of it.

    network: of the updater, as it was before Fabric wrapped it.
    """
    settings = run.settings
    steps = len(batches(run.material.train, settings.batch_size)) * settings.accumulate
    return Forward(
        updater.network,
        lambda: run.fabric.setup_module(compiled(network)),
        lambda: monitor.reading,
        (run.epochs[run.state.stage] - run.state.epoch) * steps,
        settings.compile,
    )


def train_epoch(
    run: Run,
    stage: PlannedStage,
    source: Source,
    updater: Updater,
    monitor: Monitor,
    forward: Forward,
) -> Generator[Event, None, dict[str, Any]]:
    """Visit the training set once; return the epoch's row of metrics.csv, not yet validated.

    Of several processes each takes its share of every batch. Raises Diverged.
    """
    epoch, settings, material = run.state.epoch, run.settings, run.material
    labels = material.index.labels[material.train]
    seed = settings.seed + 1000 * (run.state.stage + 1)
    drawn, steps = cut_short(run, epoch_picks(run, source.num_views))
    picks = [pick for pick, _ in drawn]
    rank = processes.rank()
    generator = np.random.default_rng([seed, epoch, 3, rank] if rank else [seed, epoch, 3])
    # dropout and drop-path have no other generator
    torch.manual_seed(seed * 100_003 + epoch + 1_000_000_007 * rank)
    apply_stage(updater.classifier, run.parts.column_of, stage)
    started_s = run.watch.total()
    monitor.begin(steps)
    tally = take_up(run, monitor, generator)
    inputs = profiled(run, stage, source.train_inputs(own_shares(drawn[tally.steps :])))
    with between_steps() as stop:
        for pick, batch in zip(picks[tally.steps :], inputs, strict=True):
            step = tally.steps
            set_rate(run, stage, updater, (step + 0.5) / steps)
            targets = labels[processes.share(pick)]
            weight = processes.weight(*map(run.objective.weight, (targets, labels[pick])))
            target = to_device(torch.from_numpy(targets), run.fabric.device)
            batch = to_device(batch, run.fabric.device)
            with monitor.forward(step):
                loss, right = backward(run, updater, forward, (batch, target), weight, generator)
                tally.clipped += updater.step(monitor)
            loss, right = of_all_processes(loss, right)
            tally.loss += checked(loss, epoch * steps + step) * len(pick)
            tally.right += right
            tally.seen += len(pick)
            tally.steps += 1
            if not source.cached:
                yield Progress(f"epoch {epoch + 1}", tally.steps, steps)
            if run.budget is not None and run.budget.is_over(run.state.stage, run.watch.total()):
                break
            if is_time(stop):
                now = replace(tally, seconds=tally.seconds + run.watch.total() - started_s)
                save_midway(run, updater, monitor, generator, now)
                stop.has_saved()
    tally = replace(tally, seconds=tally.seconds + run.watch.total() - started_s)
    return row_of(run, stage, source, updater, tally)


def row_of(
    run: Run, stage: PlannedStage, source: Source, updater: Updater, tally: Tally
) -> dict[str, Any]:
    """Return the row of metrics.csv of an epoch that has been counted."""
    row = {
        "stage": run.state.stage,
        "stage_name": stage.name,
        "epoch": run.state.epoch + 1,
        "train_loss": tally.loss / tally.seen,
        "train_accuracy": tally.right / tally.seen,
        "seconds": tally.seconds,
        "cached": int(source.cached),
        **learning_rates(run, updater.optimizer),
    }
    if run.settings.schedule.momentum is not None:
        group = updater.optimizer.param_groups[0]
        row["momentum"] = group["betas"][0] if "betas" in group else group["momentum"]
    if run.settings.rules.clipping is not None:
        row["clipped"] = tally.clipped / tally.steps
    return row


def set_rate(run: Run, stage: PlannedStage, updater: Updater, part: float) -> None:
    """Set rate and momentum for the step at this part (0..1) of the epoch."""
    state, schedule = run.state, run.settings.schedule
    pairs = zip(run.plan.stages, run.epochs, strict=True)
    epochs = [0.0 if each.solves else count for each, count in pairs]
    factor, momentum = schedule.at(schedule.progress(epochs, state.stage, state.epoch, part))
    lr = halved(stage.lr, state.halvings)
    set_rates(updater.optimizer, lr * factor * state.plateau.factor, momentum)


def backward(
    run: Run,
    updater: Updater,
    network: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    weight: float,
    generator: np.random.Generator,
) -> tuple[float, int]:
    """Compute the gradients of a batch, one micro-batch after another; return loss and hits.

    batch: inputs (N, ...) and labels (N,). weight: of its mean loss among those of all processes.
    Batch norm sees each micro-batch alone.
    """
    inputs, labels = batch
    loss, right = 0.0, 0
    updater.begin()
    for part in shares(len(labels), run.settings.accumulate, SMALLEST_PART):
        mean, logits = run.objective.loss(network, inputs[part], labels[part], generator)
        count = len(logits)
        loss += mean.item() * count
        right += int((logits.argmax(dim=1) == labels[part]).sum())
        share = count / len(labels) * weight
        updater.backward(mean * share if share != 1 else mean)
    return loss / len(labels) * weight, right


def of_all_processes(loss: float, right: int) -> tuple[float, int]:
    """Return the mean loss of a batch and its right answers. loss, right: of this process."""
    sums = processes.mean({"loss": loss, "right": right * processes.count()}, 1.0)
    return sums["loss"], round(sums["right"])


def evaluate(run: Run, source: Source, updater: Updater, row: dict[str, Any]) -> bool:
    """Add what validation says to an epoch's row, and record it; True when it is the best."""
    state, settings = run.state, run.settings
    with run.watch.on("evaluation"):
        refresh_statistics(run, source, updater)
        row |= validate(run, source, updater.evaluated)
        row |= processes.agreed(row)  # so that all of them decide alike
    is_best = state.record(row, settings.metric, settings.min_delta)
    value = measured(row, settings.metric)
    settings.schedule.record(state.plateau, value, settings.min_delta)
    return is_best


def patience_of(run: Run) -> float:
    """Return how many epochs without gain end a stage, where its last ones need not run.

    They count for a mean of epochs, and the stage that ends a budget of time has nowhere to leave
    what it would save.
    """
    ends = run.budget is not None and not any(run.epochs[run.state.stage + 1 :])
    return math.inf if run.settings.rules.swa or ends else run.settings.patience


def correct_plan(run: Run, train_s: float, begun_s: float) -> float:
    """Let a budget of time learn from a finished epoch, and change the epochs still to run.

    train_s: what its steps took. begun_s: when the watch showed the end of the one before. Returns
    what it shows now.
    """
    state, now_s = run.state, run.watch.total()
    if run.budget is not None:
        part = min(1.0, state.epochs[state.stage] - (state.epoch - 1))
        run.budget.learn(state.stage, train_s, now_s - begun_s - train_s, part)
        state.epochs = run.budget.correct(state.stage, state.epoch, state.epochs, now_s)
    return now_s


def refresh_statistics(run: Run, source: Source, updater: Updater) -> None:
    """Measure the batch-norm statistics of averaged weights, on the epoch's own batches.

    Only of what trains, and only for a mean of epochs: an average of all steps has averaged its
    statistics as well. Source: as `EpochAverage`.
    """
    average = updater.average
    if not (isinstance(average, EpochAverage) and average.started):
        return
    norms = [m for m in run.classifier.modules() if has_statistics(m) and m.training]
    if norms:
        inputs = source.train_inputs(own_shares(epoch_picks(run, source.num_views)))
        parts = (to_device(batch, run.fabric.device) for batch in inputs)
        for _ in recalibrate(updater.evaluated, parts, norms):
            pass


def learning_rates(run: Run, optimizer: Any) -> dict[str, float]:
    """Return the rate of every group that trains, as columns of metrics.csv."""
    names = run.plan.columns
    return {f"lr/{names[group['column']]}": group["lr"] for group in optimizer.param_groups}


def stage_and_epoch(row: dict[str, Any]) -> dict[str, Any]:
    """Return what tells an epoch from all others."""
    return {name: row[name] for name in ("stage", "stage_name", "epoch")}


@torch.no_grad()
def validate(run: Run, source: Source, network: nn.Module) -> dict[str, float]:
    """Return loss, accuracy and balanced accuracy on the validation set, in evaluation mode.

    Each process looks at its share of the pictures. Raises Diverged, as of the last step.
    """
    started = time.perf_counter()
    run.classifier.eval()
    outputs = [network(to_device(b, run.fabric.device)).float().cpu() for b in source.val_inputs()]
    if not outputs:  # fewer pictures than processes
        outputs = [torch.zeros(0, len(run.material.index.classes))]
    logits = torch.cat(processes.from_all(torch.cat(outputs)))
    labels = torch.from_numpy(run.material.index.labels[run.material.val])
    measures = accuracies(logits, labels)
    steps = len(batches(run.material.train, run.settings.batch_size))
    checked(measures["val_loss"], (run.state.epoch + 1) * steps - 1)
    return {**measures, "seconds_validation": time.perf_counter() - started}
