"""A time limit: how many epochs each stage gets, corrected while the run goes on.

The last stage that fits takes all the time that is left, up to a part of an epoch, and its schedule
is stretched or squeezed to end there; stages that do not fit get no epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

from transferkit.training.stages import PlannedStage

SMALLEST_PART = 0.1
"""Of an epoch: less at the end of a stage is not worth its validation."""
FLOOR = 0.04
"""Share of the budget that the first stage trains, even where nothing is left of it."""
TOLERANCE = 0.03
"""Share of the budget that an epoch may run over before it is broken off."""


@dataclass(frozen=True)
class StageCost:
    """What a stage takes. wished, least: epochs it has without a budget, and to be worth its start.

    setup_s: before its first epoch, its cache above all. train_s, validate_s: of one epoch.
    """

    wished: int
    least: int
    setup_s: float
    train_s: float
    validate_s: float

    @property
    def epoch_s(self) -> float:
        """Seconds of a whole epoch."""
        return self.train_s + self.validate_s

    def seconds(self, epochs: float) -> float:
        """Seconds of the stage with so many epochs, the last one maybe in part."""
        return self.setup_s + epochs * self.train_s + math.ceil(epochs) * self.validate_s

    def epochs_in(self, seconds: float) -> float:
        """Return the epochs, the last one maybe in part, that take so many seconds."""
        whole = max(0, math.floor(seconds / self.epoch_s))
        part = (seconds - whole * self.epoch_s - self.validate_s) / self.train_s
        return whole + (part if part >= SMALLEST_PART else 0.0)


@dataclass
class Budget:
    """How long the whole command may take, and what its stages do.

    limit_s: from the start of the command to its end. closing_s: kept for what follows the last
    stage. costs: of every stage of the plan, corrected by what they really take. epochs: of every
    stage, as planned before the first one; 0 leaves a stage out. views: of each picture, in caches.
    ready_s: when the first stage had its cache.
    """

    limit_s: float
    closing_s: float
    costs: list[StageCost]
    epochs: list[float]
    views: int
    ready_s: float = 0.0

    def used(self, stages: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
        """Return the stages of a plan that have epochs."""
        pairs = zip(stages, self.epochs, strict=True)
        return tuple(stage for stage, epochs in pairs if epochs)

    def left(self, stage: int, spent_s: float) -> float:
        """Return the seconds that are left for training; the first stage has some in any case."""
        left = self.limit_s - self.closing_s - spent_s
        floor = self.ready_s + FLOOR * self.limit_s - spent_s if stage == 0 else left
        return max(left, floor)

    def is_over(self, stage: int, spent_s: float) -> bool:
        """Whether an epoch has to be broken off to validate what it has reached."""
        left = self.left(stage, spent_s) - self.costs[stage].validate_s
        return left < -TOLERANCE * self.limit_s

    def plan_from(self, stage: int, epochs: Sequence[float], spent_s: float) -> list[float]:
        """Plan a stage that begins and all that follow; return the epochs of every stage."""
        left = allocate(self.costs[stage:], self.left(stage, spent_s))
        if stage == 0:
            left[0] = max(1.0, left[0])  # something has to be trained
        return [*epochs[:stage], *left]

    def correct(
        self, stage: int, done: int, epochs: Sequence[float], spent_s: float
    ) -> list[float]:
        """Plan anew after `done` epochs of a stage; return the epochs of every stage.

        The last stage gets what is left. Before it, deeper stages go where their fewest epochs
        would not fit any more, and the stage ends early where only they would.
        """
        planned, left, cost = list(epochs), self.left(stage, spent_s), self.costs[stage]
        later = [n for n in range(stage + 1, len(planned)) if planned[n]]
        rest_s = max(0, cost.least - done) * cost.epoch_s
        while later and left < rest_s + self._least_s(later):
            planned[later.pop()] = 0.0
        if later:
            more = math.floor((left - self._least_s(later)) / cost.epoch_s)
            planned[stage] = min(planned[stage], float(done + more))
        else:
            extra = cost.epochs_in(left)
            planned[stage] = done + extra if extra else min(planned[stage], done)
        return planned

    def _least_s(self, stages: Sequence[int]) -> float:
        return sum(self.costs[n].seconds(self.costs[n].least) for n in stages)

    def learn(self, stage: int, train_s: float, validate_s: float, part: float) -> None:
        """Take in what an epoch took, of which `part` (0..1] was run.

        The mean of expected and measured times, so that a single hiccup weighs little.
        """
        cost = self.costs[stage]
        train_s = (cost.train_s + max(1e-6, train_s / part)) / 2
        validate_s = (cost.validate_s + max(1e-6, validate_s)) / 2
        self.costs[stage] = replace(cost, train_s=train_s, validate_s=validate_s)

    def learn_setup(self, setup_s: float, spent_s: float) -> None:
        """Take in what the first stage's cache took, and that the stage is ready to train.

        The end, which does like work, is corrected alike; only upwards, because where the cache
        was there already, nothing is known of the machine.
        """
        expected_s = self.costs[0].setup_s
        if 0 < expected_s < setup_s:
            self.closing_s *= setup_s / expected_s
        self.ready_s = spent_s

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Budget":
        """Read what `to_dict` made."""
        return Budget(**{**values, "costs": [StageCost(**cost) for cost in values["costs"]]})


def used_stages(
    stages: tuple[PlannedStage, ...], budget: Budget | None
) -> tuple[PlannedStage, ...]:
    """Return the stages of a plan that run: all of them without a budget."""
    return stages if budget is None else budget.used(stages)


def deepest_that_fits(costs: Sequence[StageCost], left_s: float) -> int:
    """Return the last stage, from 0, up to which all get their fewest epochs; -1 for none."""
    needed = accumulate(cost.seconds(cost.least) for cost in costs)
    return max((number for number, seconds in enumerate(needed) if seconds <= left_s), default=-1)


def allocate(costs: Sequence[StageCost], left_s: float) -> list[float]:
    """Share out seconds among stages that follow each other; return the epochs of each.

    Up to the deepest stage that fits with its fewest epochs, all get the same share of the way from
    the fewest to the wished ones; what is then left is the last one's. When not even the first one
    fits, it gets what there is.
    """
    last = max(0, deepest_that_fits(costs, left_s))
    used = costs[: last + 1]
    least = sum(cost.seconds(cost.least) for cost in used)
    wished = sum(cost.seconds(cost.wished) for cost in used)
    share = min(1.0, max(0.0, (left_s - least) / max(wished - least, 1e-9)))
    epochs = [float(c.least + math.floor(share * (c.wished - c.least))) for c in used[:-1]]
    spent = sum(cost.seconds(count) for cost, count in zip(used, epochs, strict=False))
    rest = left_s - spent - used[-1].setup_s
    return [*epochs, used[-1].epochs_in(rest), *[0.0] * (len(costs) - len(used))]
