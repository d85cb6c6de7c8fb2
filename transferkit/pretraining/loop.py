"""The pretraining loop: phases, epochs and steps, as one generator of events."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.data.loader import ahead
from transferkit.events import Event, Notice, PretrainingEpoch, Progress
from transferkit.files.foreign_files import understood
from transferkit.pretraining.method import Batch, Objective, Phase
from transferkit.pretraining.run import Optimizers, PretrainingRun, epoch_start, save, save_midway
from transferkit.pretraining.views import PretrainingViews, View, as_batch
from transferkit.stopping import between_steps
from transferkit.training.divergence import Diverged, DivergedForGood, checked
from transferkit.training.gradients import CLIPPINGS
from transferkit.training.midway import is_time
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates
from transferkit.units import rate_text

BEGIN_PICTURES = 256
"""Pictures that are passed to `Phase.begin`."""
PILOT_STEPS = 6
"""Steps that are timed, and undone, to estimate how many epochs a budget allows."""


def split_epochs(phases: Sequence[Phase], epochs: int) -> list[int]:
    """Divide epochs among phases in proportion to their shares, at least one for each."""
    total = sum(phase.share for phase in phases)
    ends = np.cumsum([phase.share for phase in phases]) / total * max(epochs, len(phases))
    starts = np.concatenate([[0.0], ends[:-1]])
    return [max(1, round(end) - round(start)) for start, end in zip(starts, ends, strict=True)]


def fit(run: PretrainingRun) -> Iterator[Event]:
    """Run every phase, starting from `run.state`; yield what happens.

    Raises UserError when the loss becomes NaN or infinite.
    """
    state = run.state
    if run.settings.budget_s is not None and not state.rows and state.midway is None:
        epoch_s = processes.agreed((yield from pilot(run)))
        state.epochs = split_epochs(run.method.phases, round(run.settings.budget_s / epoch_s))
        text = f"an epoch takes about {epoch_s:.1f} s: {sum(state.epochs)} epochs fit the budget"
        yield Notice(text)
    shown: set[str] = set()
    while state.phase < len(run.method.phases):
        phase = run.method.phases[state.phase]
        if state.epoch == 0 and state.midway is None and phase.begin is not None:
            begin(run, phase.begin)
        optimizers = make_optimizers(run, phase)
        while state.epoch < state.epochs[state.phase] and not out_of_time(run):
            row = yield from train_epoch(run, phase, optimizers)
            state.rows.append(row)
            state.epoch += 1
            row |= processes.from_first(evaluate, run)
            state.seconds += row["seconds"] + row["seconds_measuring"]
            fit_budget(run)
            processes.from_first(save, run, optimizers)
            yield PretrainingEpoch(len(state.rows), sum(state.epochs), phase.name, dict(row))
            warnings = run.method.warnings(state.rows) if run.method.warnings else []
            yield from (Notice(text, warning=True) for text in warnings if text not in shown)
            shown.update(warnings)
        state.phase += 1
        state.epoch = 0


def evaluate(run: PretrainingRun) -> dict[str, float]:
    """Return the evaluation's figures after an epoch, and how long it took."""
    started = time.perf_counter()
    figures = dict(run.evaluate(len(run.state.rows), sum(run.state.epochs)))
    return figures | {"seconds_measuring": time.perf_counter() - started}


def begin(run: PretrainingRun, prepare: Callable[[Tensor], None]) -> None:
    """Call a phase's `begin` with a fixed sample of training pictures."""
    count = min(BEGIN_PICTURES, len(run.train))
    positions = run.train[np.linspace(0, len(run.train) - 1, count).astype(int)]
    clean = list(batches(run, run.views.clean(), [positions], 0))
    with torch.no_grad():
        prepare(clean[0][0][0])


def out_of_time(run: PretrainingRun) -> bool:
    """Whether the time budget is spent; the first epoch of a phase always runs."""
    budget = run.settings.budget_s
    return budget is not None and run.state.epoch > 0 and run.state.seconds >= budget


def fit_budget(run: PretrainingRun) -> None:
    """Adjust the number of epochs of the last phase to the measured time of its epochs so far."""
    state, budget = run.state, run.settings.budget_s
    if budget is None or state.phase < len(state.epochs) - 1:
        return
    rows = [row for row in state.rows if row["phase"] == state.phase]
    epoch_s = float(np.mean([row["seconds"] + row["seconds_measuring"] for row in rows]))
    more = max(0, round((budget - state.seconds) / epoch_s))
    state.epochs[state.phase] = state.epoch + more


def make_optimizers(run: PretrainingRun, phase: Phase) -> Optimizers:
    """Create an optimiser for every player of a phase; freeze all other parameters."""
    for parameter in run.method.networks.parameters():
        parameter.requires_grad_(False)
    optimizers: Optimizers = {}
    for name, player in phase.players.items():
        parameters = list(player.parameters() if isinstance(player, nn.Module) else player)
        for parameter in parameters:
            parameter.requires_grad_(True)
        groups = parameter_groups(
            [(str(number), p) for number, p in enumerate(parameters)],
            lambda _: 0,
            (1.0,),
            (run.settings.weight_decay,) * 2,
        )
        optimizers[name] = make_optimizer(run.settings.optimizer, groups, run.settings.hyper)
    if run.resumed is not None:
        for name, optimizer in optimizers.items():
            if run.state.epoch or run.state.midway:  # else the checkpoint is of the phase before
                with understood(run.folder.path):
                    optimizer.load_state_dict(run.resumed[name])
        run.resumed = None
    return optimizers


def train_epoch(
    run: PretrainingRun, phase: Phase, optimizers: Optimizers
) -> Generator[Event, None, dict[str, Any]]:
    """Train for one epoch; return its row of metrics.csv.

    Each distributed process takes its slice of every batch and has its own random numbers.
    """
    state, settings = run.state, run.settings
    number = len(state.rows)
    torch.manual_seed(settings.seed * 100_003 + number + 1_000_000_007 * processes.rank())
    order = run.train[np.random.default_rng([settings.seed, number, 6]).permutation(len(run.train))]
    picks = cut(arranged(run, order), settings.batch_size, settings.drop_last)
    run.method.networks.train()
    started = time.perf_counter()
    totals = epoch_start(run)
    started -= totals.seconds
    local = [processes.share(pick) for pick in picks[totals.steps :]]
    with between_steps() as stop:
        for batch in batches(run, run.views, local, number):
            step = totals.steps
            part = (step + 0.5) / len(picks)
            progress = settings.schedule.progress(state.epochs, state.phase, state.epoch, part)
            factor, momentum = settings.schedule.at(progress)
            totals.lr = settings.lr * factor
            for optimizer in optimizers.values():
                set_rates(optimizer, totals.lr, momentum)
            figures = take_step(run, phase, Batch(*batch, progress), optimizers, len(picks[step]))
            totals.add(figures)
            yield Progress(f"epoch {number + 1}", totals.steps, len(picks))
            if is_time(stop):
                totals.seconds = time.perf_counter() - started
                save_midway(run, optimizers, totals)
                stop.has_saved()
    row: dict[str, Any] = {"phase": state.phase, "phase_name": phase.name, "epoch": number + 1}
    row |= {name: value / len(picks) for name, value in totals.sums.items()}
    row |= processes.from_first(held_out_figures, run, phase)
    row |= {"lr": totals.lr, "seconds": time.perf_counter() - started}
    return processes.agreed(row)


def take_step(
    run: PretrainingRun, phase: Phase, batch: Batch, optimizers: Optimizers, count: int
) -> dict[str, float]:
    """Make one optimiser step for every player; return their figures. Raises UserError.

    count: pictures of the batch in all processes; gradients and figures are means over them.
    """
    objectives = phase.learn(batch)
    weight = processes.weight(len(batch.labels), count)
    sums: dict[str, float] = {}
    while True:
        with run.fabric.autocast():
            objective = next(objectives, None)
        if objective is None:
            break
        figures = processes.mean(figures_of(objective, phase), weight)
        try:
            checked(next(iter(figures.values())), 0)
        except Diverged as problem:
            raise diverged(run, phase, problem) from None
        optimizer = optimizers[objective.player]
        optimizer.zero_grad(set_to_none=True)
        (objective.loss * weight if weight != 1 else objective.loss).backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        processes.average_(p.grad for p in parameters if p.grad is not None)
        if run.settings.clipping is not None:
            kind, limit = run.settings.clipping
            CLIPPINGS[kind](parameters, limit)
        optimizer.step()
        sums |= {name: sums.get(name, 0.0) + figure for name, figure in figures.items()}
    if phase.after_step is not None:
        phase.after_step(batch.progress)
    return sums


def figures_of(objective: Objective, phase: Phase) -> dict[str, float]:
    """Return the loss, as "loss" or with several players "loss_<player>", then the figures."""
    name = "loss" if len(phase.players) == 1 else f"loss_{objective.player}"
    return {name: float(objective.loss.detach()), **objective.figures}


@torch.no_grad()
def held_out_figures(run: PretrainingRun, phase: Phase) -> dict[str, float]:
    """Return the figures, as val_<name>, on the held-out pictures, in evaluation mode."""
    held_out = run.index.of_split("val")
    picks = cut(arranged(run, held_out), run.settings.batch_size, drop_last=False)
    sums: dict[str, float] = {}
    run.method.networks.eval()
    for pick, batch in zip(picks, batches(run, run.views, picks, 0), strict=True):
        for objective in phase.learn(Batch(*batch, progress=1.0, held_out=True)):
            for name, figure in figures_of(objective, phase).items():
                sums[name] = sums.get(name, 0.0) + figure * len(pick)
    return {f"val_{name}": value / len(held_out) for name, value in sums.items()}


def arranged(run: PretrainingRun, order: np.ndarray) -> np.ndarray:
    """Return positions (N,) in the method's training order."""
    arrange = run.method.arrange
    return order if arrange is None else arrange(order, run.index.labels[order])


def cut(order: np.ndarray, size: int, drop_last: bool) -> list[np.ndarray]:
    """Cut positions (N,) into batches; a smaller last one may be dropped unless it is the only one.

    A last batch of a single picture, or with fewer pictures than processes, is always dropped:
    batch norm needs two pictures, and every process one.
    """
    picks = [order[start : start + size] for start in range(0, len(order), size)]
    short = picks and len(picks[-1]) < (size if drop_last else max(2, processes.count()))
    return picks[:-1] if len(picks) > 1 and short else picks


def batches(
    run: PretrainingRun, views: PretrainingViews, picks: Sequence[np.ndarray], epoch: int
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield the views (N, 3, H, W), values 0..1, and labels (N,) of every batch."""

    def make(position: int) -> tuple[View, ...]:
        return views.make(run.index.file(position), position, epoch)

    decoded = ahead(make, (int(position) for pick in picks for position in pick))
    for pick in picks:
        columns = zip(*(next(decoded) for _ in pick), strict=True)
        tensors = tuple(as_batch(column, run.device) for column in columns)
        yield tensors, torch.from_numpy(run.index.labels[pick]).to(run.device)


def pilot(run: PretrainingRun) -> Generator[Event, None, float]:
    """Time a few steps and undo them; return the estimated seconds of an epoch."""
    phase = run.method.phases[0]
    before = {n: t.detach().clone() for n, t in run.method.networks.state_dict().items()}
    optimizers = make_optimizers(run, phase)
    epoch = cut(run.train, run.settings.batch_size, run.settings.drop_last)
    picks = epoch[:PILOT_STEPS]
    local = [processes.share(pick) for pick in picks]
    run.method.networks.train()
    steps_s: list[float] = []
    started = time.perf_counter()
    for step, batch in enumerate(batches(run, run.views, local, 0)):
        for optimizer in optimizers.values():
            set_rates(optimizer, 1e-8)
        take_step(run, phase, Batch(*batch, 0.0), optimizers, len(picks[step]))
        steps_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        yield Progress("timing a few steps", step + 1, len(picks))
    run.method.networks.load_state_dict(before)
    steady = steps_s[1:] or steps_s  # the first step includes one-time setup
    return float(np.mean(steady)) * len(epoch)


def diverged(run: PretrainingRun, phase: Phase, problem: Diverged) -> DivergedForGood:
    """Return the error of a run whose loss became NaN or infinite."""
    name = "NaN" if problem.loss != problem.loss else "infinite"
    return DivergedForGood(
        f"the loss became {name} in epoch {len(run.state.rows) + 1} ({phase.name})",
        f"the peak learning rate is {rate_text(run.settings.lr)}",
        "lower --lr, or limit the gradients with --clip-norm 1",
    )
