"""The pretraining loop: phases, epochs and steps, as one generator of events."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.data.loader import ahead
from transferkit.errors import UserError
from transferkit.events import Event, Notice, PretrainingEpoch, Progress
from transferkit.files.foreign_files import understood
from transferkit.pretraining.method import Batch, Move, Phase
from transferkit.pretraining.run import (
    Optimizers,
    PretrainingRun,
    save,
    save_midway,
    take_up,
)
from transferkit.pretraining.views import PretrainingViews, View, as_batch
from transferkit.stopping import between_steps
from transferkit.training.divergence import Diverged, checked
from transferkit.training.gradients import CLIPPINGS
from transferkit.training.midway import is_time
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates
from transferkit.units import rate_text

LOOKED_AT = 256
"""Pictures that a phase may look at before its first step."""
PILOT_STEPS = 6
"""Steps that are timed, and taken back, to see how many epochs a budget allows."""


def split_epochs(phases: Sequence[Phase], epochs: int) -> list[int]:
    """Share out epochs among phases, at least one for each, by their shares."""
    whole = sum(phase.share for phase in phases)
    ends = np.cumsum([phase.share for phase in phases]) / whole * max(epochs, len(phases))
    starts = np.concatenate([[0.0], ends[:-1]])
    return [max(1, round(end) - round(start)) for start, end in zip(starts, ends, strict=True)]


def fit(run: PretrainingRun) -> Iterator[Event]:
    """Run every phase from where `run.state` stands; yield what happens.

    Raises UserError when the loss is no number any more.
    """
    state = run.state
    if run.settings.budget_s is not None and not state.rows and state.midway is None:
        epoch_s = processes.agreed((yield from pilot(run)))
        state.epochs = split_epochs(run.method.phases, round(run.settings.budget_s / epoch_s))
        text = f"an epoch takes about {epoch_s:.1f} s: {sum(state.epochs)} epochs fit the budget"
        yield Notice(text)
    known: set[str] = set()
    while state.phase < len(run.method.phases):
        phase = run.method.phases[state.phase]
        if state.epoch == 0 and state.midway is None and phase.begin is not None:
            begin(run, phase.begin)
        optimizers = make_optimizers(run, phase)
        while state.epoch < state.epochs[state.phase] and not out_of_time(run):
            row = yield from train_epoch(run, phase, optimizers)
            state.rows.append(row)
            state.epoch += 1
            row |= processes.from_first(measure, run)
            state.seconds += row["seconds"] + row["seconds_measuring"]
            fit_budget(run)
            processes.from_first(save, run, optimizers)
            yield PretrainingEpoch(len(state.rows), sum(state.epochs), phase.name, dict(row))
            warn = run.method.warnings or (lambda rows: [])
            for text in warn(state.rows):
                if text not in known:
                    known.add(text)
                    yield Notice(text, warning=True)
        state.phase += 1
        state.epoch = 0


def measure(run: PretrainingRun) -> dict[str, float]:
    """Return the further figures of the epoch that just ended, and how long they took."""
    started = time.perf_counter()
    found = dict(run.measure(len(run.state.rows), sum(run.state.epochs)))
    return found | {"seconds_measuring": time.perf_counter() - started}


def begin(run: PretrainingRun, prepare: Callable[[Tensor], None]) -> None:
    """Let a phase look at pictures before its first step, always the same ones."""
    positions = run.train[
        np.linspace(0, len(run.train) - 1, min(LOOKED_AT, len(run.train))).astype(int)
    ]
    clean = list(batches(run, run.views.clean(), [positions], 0))
    with torch.no_grad():
        prepare(clean[0][0][0])


def out_of_time(run: PretrainingRun) -> bool:
    """Whether a budget is spent; the first epoch of a phase always runs."""
    budget = run.settings.budget_s
    return budget is not None and run.state.epoch > 0 and run.state.seconds >= budget


def fit_budget(run: PretrainingRun) -> None:
    """Correct how many epochs the last phase has, by what the epochs so far really took."""
    state, budget = run.state, run.settings.budget_s
    if budget is None or state.phase < len(state.epochs) - 1:
        return
    left = budget - state.seconds
    own = [
        row["seconds"] + row["seconds_measuring"]
        for row in state.rows
        if row["phase"] == state.phase
    ]
    more = max(0, round(left / float(np.mean(own))))
    state.epochs[state.phase] = state.epoch + more


def make_optimizers(run: PretrainingRun, phase: Phase) -> Optimizers:
    """Give every player of a phase its optimiser; all other parameters stop training."""
    for parameter in run.method.networks.parameters():
        parameter.requires_grad_(False)
    found: Optimizers = {}
    for name, player in phase.players.items():
        parameters = parameters_of(player)
        for parameter in parameters:
            parameter.requires_grad_(True)
        groups = parameter_groups(
            [(str(number), p) for number, p in enumerate(parameters)],
            lambda _: 0,
            (1.0,),
            (run.settings.weight_decay,) * 2,
        )
        found[name] = make_optimizer(run.settings.optimizer, groups, run.settings.hyper)
    if run.resumed is not None:
        for name, optimizer in found.items():
            if run.state.epoch or run.state.midway:  # else the checkpoint is of the phase before
                with understood(run.folder.path):
                    optimizer.load_state_dict(run.resumed[name])
        run.resumed = None
    return found


def parameters_of(player: nn.Module | Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of a player."""
    return list(player.parameters()) if isinstance(player, nn.Module) else list(player)


def train_epoch(
    run: PretrainingRun, phase: Phase, optimizers: Optimizers
) -> Generator[Event, None, dict[str, Any]]:
    """Visit the pictures once; return the epoch's row of metrics.csv.

    Of several processes each takes its share of every batch, and draws numbers of its own.
    """
    state, settings = run.state, run.settings
    number = len(state.rows)
    torch.manual_seed(settings.seed * 100_003 + number + 1_000_000_007 * processes.rank())
    order = run.train[np.random.default_rng([settings.seed, number, 6]).permutation(len(run.train))]
    picks = cut(arranged(run, order), settings.batch_size, settings.drop_last)
    run.method.networks.train()
    started = time.perf_counter()
    tally = take_up(run)
    started -= tally.seconds
    own = [processes.share(pick) for pick in picks[tally.steps :]]
    with between_steps() as stop:
        for batch in batches(run, run.views, own, number):
            step = tally.steps
            part = (step + 0.5) / len(picks)
            progress = settings.schedule.progress(state.epochs, state.phase, state.epoch, part)
            factor, momentum = settings.schedule.at(progress)
            tally.lr = settings.lr * factor
            for optimizer in optimizers.values():
                set_rates(optimizer, tally.lr, momentum)
            shown = take_step(run, phase, Batch(*batch, progress), optimizers, len(picks[step]))
            tally.add(shown)
            yield Progress(f"epoch {number + 1}", tally.steps, len(picks))
            if is_time(stop):
                tally.seconds = time.perf_counter() - started
                save_midway(run, optimizers, tally)
                stop.has_saved()
    row: dict[str, Any] = {"phase": state.phase, "phase_name": phase.name, "epoch": number + 1}
    row |= {name: value / len(picks) for name, value in tally.sums.items()}
    row |= processes.from_first(held_out_figures, run, phase)
    row |= {"lr": tally.lr, "seconds": time.perf_counter() - started}
    return processes.agreed(row)


def take_step(
    run: PretrainingRun, phase: Phase, batch: Batch, optimizers: Optimizers, whole: int
) -> dict[str, float]:
    """Let every player make its move; return what they show. Raises UserError.

    whole: pictures of the batch in all processes; gradients and figures are means over them.
    """
    moves = phase.learn(batch)
    clipping = run.settings.clipping
    weight = processes.weight(len(batch.labels), whole)
    shown: dict[str, float] = {}
    while True:
        with run.autocast():
            move = next(moves, None)
        if move is None:
            break
        figures = processes.mean(figures_of(move, phase), weight)
        try:
            checked(next(iter(figures.values())), 0)
        except Diverged as problem:
            raise diverged(run, phase, problem) from None
        optimizer = optimizers[move.player]
        optimizer.zero_grad(set_to_none=True)
        (move.loss * weight if weight != 1 else move.loss).backward()
        own = [p for group in optimizer.param_groups for p in group["params"]]
        processes.average_(p.grad for p in own if p.grad is not None)
        if clipping is not None:
            CLIPPINGS[clipping[0]](own, clipping[1])
        optimizer.step()
        shown |= {name: shown.get(name, 0.0) + figure for name, figure in figures.items()}
    if phase.stepped is not None:
        phase.stepped(batch.progress)
    return shown


def figures_of(move: Move, phase: Phase) -> dict[str, float]:
    """Name a move's loss and figures: "loss", or "loss_<player>" where there are several, first."""
    name = "loss" if len(phase.players) == 1 else f"loss_{move.player}"
    value = float(move.loss.detach())
    return {name: value, **{key: float(figure) for key, figure in move.figures.items()}}


@torch.no_grad()
def held_out_figures(run: PretrainingRun, phase: Phase) -> dict[str, float]:
    """Return the figures, as val_<name>, on the pictures kept aside, in evaluation mode."""
    aside = run.index.of_split("val")
    picks = cut(arranged(run, aside), run.settings.batch_size, drop_last=False)
    sums: dict[str, float] = {}
    run.method.networks.eval()
    for pick, batch in zip(picks, batches(run, run.views, picks, 0), strict=True):
        for move in phase.learn(Batch(*batch, progress=1.0, held_out=True)):
            for name, figure in figures_of(move, phase).items():
                sums[name] = sums.get(name, 0.0) + figure * len(pick)
    return {f"val_{name}": value / len(aside) for name, value in sums.items()}


def arranged(run: PretrainingRun, order: np.ndarray) -> np.ndarray:
    """Return positions (N,) in the order that the method wants."""
    arrange = run.method.arrange
    return order if arrange is None else arrange(order, run.index.labels[order])


def cut(order: np.ndarray, size: int, drop_last: bool) -> list[np.ndarray]:
    """Cut positions (N,) into batches; a smaller last one may be left out, if it is not alone.

    A last batch of one picture always is, if it is not alone: batch normalisation needs two, and
    every process one.
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

    made = ahead(make, (int(position) for pick in picks for position in pick))
    for pick in picks:
        columns = zip(*(next(made) for _ in pick), strict=True)
        tensors = tuple(as_batch(column, run.device) for column in columns)
        yield tensors, torch.from_numpy(run.index.labels[pick]).to(run.device)


def pilot(run: PretrainingRun) -> Generator[Event, None, float]:
    """Time a few steps and take them back; return the seconds that an epoch may take."""
    phase = run.method.phases[0]
    before = {n: t.detach().clone() for n, t in run.method.networks.state_dict().items()}
    optimizers = make_optimizers(run, phase)
    every = cut(run.train, run.settings.batch_size, run.settings.drop_last)
    picks = every[:PILOT_STEPS]
    run.method.networks.train()
    taken: list[float] = []
    started = time.perf_counter()
    own = [processes.share(pick) for pick in picks]
    for step, batch in enumerate(batches(run, run.views, own, 0)):
        for optimizer in optimizers.values():
            set_rates(optimizer, 1e-8)
        take_step(run, phase, Batch(*batch, 0.0), optimizers, len(picks[step]))
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
        yield Progress("timing a few steps", step + 1, len(picks))
    run.method.networks.load_state_dict(before)
    steady = taken[1:] or taken  # the first step also pays for what is set up once
    return float(np.mean(steady)) * len(every)


def diverged(run: PretrainingRun, phase: Phase, problem: Diverged) -> UserError:
    """Return what a run says whose loss is no number any more."""
    name = "NaN" if problem.loss != problem.loss else "infinite"
    kept = f"; the epochs before are kept in {run.folder.path}" if run.state.rows else ""
    return UserError(
        f"the loss became {name} in epoch {len(run.state.rows) + 1} ({phase.name})",
        f"the peak learning rate is {rate_text(run.settings.lr)}",
        f"lower --lr, or limit the gradients with --clip-norm 1{kept}",
    )
