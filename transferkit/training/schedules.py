"""Learning-rate schedules: functions of the progress, so resuming needs only the step.

Progress runs from 0 to 1 over a stage, or over all stages. Only the performance schedule looks at
what validation found; its state is saved with the run.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transferkit.config import ScheduleOptions
from transferkit.config.optimization import SCHEDULE_USES

Factor = Callable[[float], float]
"""Progress 0..1 -> multiplier of the peak rate."""
WARMUP = 0.1


def constant(options: ScheduleOptions) -> Factor:
    """Stay at the peak."""
    return lambda progress: 1.0


def linear(options: ScheduleOptions) -> Factor:
    """Fall in a straight line from the peak to 0."""
    return lambda progress: 1 - progress


def cosine(options: ScheduleOptions) -> Factor:
    """Half a cosine from 1 at progress 0 to 0 at progress 1.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    return lambda progress: 0.5 * (1 + math.cos(math.pi * progress))


def power(options: ScheduleOptions) -> Factor:
    """Fall fast, then ever more slowly: 1 / (1 + p / period)^power.

    Source: Robbins and Monro, "A Stochastic Approximation Method", 1951, for power 1.
    """
    return lambda progress: (1 + progress / options.period) ** -options.power


def exponential(options: ScheduleOptions) -> Factor:
    """Fall to a tenth in every period: 0.1^(p / period).

    Source: Senior et al., "An Empirical Study of Learning Rates in Deep Neural Networks", 2013.
    """
    return lambda progress: 0.1 ** (progress / options.period)


def piecewise(options: ScheduleOptions) -> Factor:
    """Jump to the next of the values at each boundary.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet Classification", NeurIPS 2012 (in steps).
    """

    def factor(progress: float) -> float:
        return options.values[sum(progress >= boundary for boundary in options.boundaries)]

    return factor


def one_cycle(options: ScheduleOptions) -> Factor:
    """Rise to the peak, fall back as long, then fall to almost nothing.

    Straight lines from `cycle_start` to 1 over the share `cycle_rise`, back over the same share,
    and to `cycle_end` over the rest.
    Source: Smith and Topin, "Super-Convergence", 2018; Smith, "A Disciplined Approach to Neural
    Network Hyper-Parameters", 2018.
    """
    rise = options.cycle_rise
    points = [0.0, rise, 2 * rise, 1.0]
    values = [options.cycle_start, 1.0, options.cycle_start, options.cycle_end]
    return lambda progress: interpolated(progress, points, values)


def one_cycle_momentum(options: ScheduleOptions) -> Factor:
    """Return the momentum at a progress: low where the rate is high. Source: as `one_cycle`."""
    rise = options.cycle_rise
    low, high = options.momentum_low, options.momentum_high
    return lambda progress: interpolated(progress, [0.0, rise, 2 * rise], [high, low, high])


def performance(options: ScheduleOptions) -> Factor:
    """Stay, and fall by a factor whenever validation has not gained for some epochs.

    The falls are in `Plateau`. Source: torch's ReduceLROnPlateau.
    """
    return lambda progress: 1.0


def interpolated(x: float, points: list[float], values: list[float]) -> float:
    """Return the value at x of straight lines through (points, values); beyond them, the last."""
    for (left, right), (start, end) in zip(
        itertools.pairwise(points), itertools.pairwise(values), strict=True
    ):
        if x < right:
            return start + (end - start) * (x - left) / (right - left)
    return values[-1]


SCHEDULES: dict[str, Callable[[ScheduleOptions], Factor]] = dict(
    zip(
        SCHEDULE_USES,
        (constant, linear, cosine, power, exponential, piecewise, one_cycle, performance),
        strict=True,
    )
)
"""Name -> schedule, in the order of the names in the configuration."""


def with_warmup(schedule: Factor, progress: float, warmup: float) -> float:
    """Rise linearly over the first `warmup` share of the progress, then run the schedule.

    progress: 0..1. Returns the multiplier of the peak rate.
    """
    if progress < warmup:
        return schedule(0) * progress / warmup
    return schedule((progress - warmup) / (1 - warmup))


@dataclass
class Plateau:
    """Where the performance schedule stands: the rate's factor, and how long nothing was gained."""

    factor: float = 1.0
    best: float = -math.inf
    waited: int = 0

    def record(self, value: float, patience: int, reduction: float, min_delta: float) -> None:
        """Take in an epoch's value, to be high; after more than `patience` without gain reduce.

        As torch's ReduceLROnPlateau with an absolute threshold.
        """
        if value > self.best + min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > patience:
            self.factor *= reduction
            self.waited = 0


@dataclass(frozen=True)
class Schedule:
    """How rate and momentum move.

    factor: of the peak rate. momentum: None leaves the optimiser's. warmup: share of the progress.
    whole_run: the progress is of all stages, not of each. per_epoch: it moves between epochs only.
    plateau: (patience in epochs, reduction), or None.
    """

    factor: Factor
    momentum: Factor | None = None
    warmup: float = 0.0
    whole_run: bool = False
    per_epoch: bool = False
    plateau: tuple[int, float] | None = None

    def progress(self, epochs: Sequence[float], stage: int, epoch: int, part: float) -> float:
        """Return the progress 0..1 in the middle of a step, or of its epoch.

        epochs: of every stage of the plan, in part where a budget of time ends one there. epoch:
        from 0. part: of the epoch, 0..1.
        """
        part = 0.5 if self.per_epoch else part
        if self.whole_run:
            return (sum(epochs[:stage]) + epoch + part) / sum(epochs)
        return (epoch + part) / epochs[stage]

    def at(self, progress: float) -> tuple[float, float | None]:
        """Return the multiplier of the peak rate and the momentum at a progress."""
        if self.momentum is None:
            return with_warmup(self.factor, progress, self.warmup), None
        momentum = self.momentum(max(0.0, (progress - self.warmup) / (1 - self.warmup)))
        return with_warmup(self.factor, progress, self.warmup), momentum

    def record(self, plateau: Plateau, value: float, min_delta: float) -> None:
        """Let the performance schedule see an epoch's metric, to be high."""
        if self.plateau is not None:
            plateau.record(value, *self.plateau, min_delta)


def make_schedule(
    options: ScheduleOptions, warmup: float | None, cycles_momentum: bool
) -> Schedule:
    """Build the configured schedule.

    warmup: share of the progress; None is a tenth, but none before 1cycle, whose rise is its own.
    cycles_momentum: the optimiser has a momentum to cycle.
    """
    if warmup is None:
        warmup = 0.0 if options.name == "1cycle" else WARMUP
    cycles = options.name == "1cycle" and cycles_momentum
    return Schedule(
        SCHEDULES[options.name](options),
        one_cycle_momentum(options) if cycles else None,
        warmup,
        whole_run=options.scope == "run",
        per_epoch=options.every == "epoch",
        plateau=(options.patience, options.factor) if options.name == "performance" else None,
    )
