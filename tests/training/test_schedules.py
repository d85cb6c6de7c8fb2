import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as reference
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from transferkit.config import ScheduleOptions
from transferkit.training.schedules import (
    SCHEDULES,
    Plateau,
    Schedule,
    cosine,
    make_schedule,
    one_cycle,
    one_cycle_momentum,
    with_warmup,
)

DEFAULT = ScheduleOptions()


def rates(scheduler_of: Any, steps: int, key: str = "lr") -> list[float]:
    weight = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weight, lr=1.0, momentum=0.9)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return found


FIFTY = {
    "constant": lambda o: reference.ConstantLR(o, factor=1.0),
    "linear": lambda o: LinearLR(o, start_factor=1, end_factor=1e-15, total_iters=50),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=50),
    "power": lambda o: reference.LambdaLR(o, lambda step: 1 / (1 + step / 25)),
    "exponential": lambda o: reference.ExponentialLR(o, gamma=0.1 ** (1 / 25)),
    "piecewise": lambda o: reference.MultiStepLR(o, [25, 40], gamma=0.1),
}


@pytest.mark.parametrize("name", FIFTY)
def test_a_schedule_equals_torch(name: str) -> None:
    options = ScheduleOptions(boundaries=(0.5, 0.8))
    factor = SCHEDULES[name](options)
    assert [factor(step / 50) for step in range(51)] == pytest.approx(
        rates(FIFTY[name], 51), abs=1e-12
    )


def test_power_in_closed_form() -> None:
    factor = SCHEDULES["power"](ScheduleOptions(power=2.0, period=0.25))
    assert [factor(p) for p in (0, 0.25, 0.75)] == pytest.approx([1, 1 / 4, 1 / 16])


def test_one_cycle_equals_torch() -> None:
    steps, rise = 101, 0.3
    end = (rise * steps - 1) / (steps - 1)  # where torch's rise ends, as a share of ours
    options = ScheduleOptions("1cycle", cycle_rise=end, cycle_start=0.04, cycle_end=0.04 * 1e-3)

    def theirs(optimizer: torch.optim.Optimizer) -> reference.OneCycleLR:
        return reference.OneCycleLR(
            optimizer,
            1.0,
            total_steps=steps,
            pct_start=rise,
            anneal_strategy="linear",
            div_factor=25,
            final_div_factor=1e3,
            three_phase=True,
        )

    def until_last(key: str) -> list[float]:  # torch allows no step after the last
        return rates(theirs, steps - 1, key)

    ours = [one_cycle(options)(step / (steps - 1)) for step in range(steps - 1)]
    assert ours == pytest.approx(until_last("lr"), abs=1e-9)
    momentum = [one_cycle_momentum(options)(step / (steps - 1)) for step in range(steps - 1)]
    assert momentum == pytest.approx(until_last("momentum"), abs=1e-9)
    assert (min(momentum), max(momentum)) == pytest.approx((0.85, 0.95), abs=1e-2)


def test_performance_equals_torch() -> None:
    values = [0.5, 0.6, 0.61, 0.6, 0.6, 0.6, 0.75, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.9, 0.1, 0.1]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = reference.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.3, patience=2, threshold=0.02, threshold_mode="abs"
    )
    options = ScheduleOptions("performance", patience=2, factor=0.3)
    schedule, plateau = make_schedule(options, 0.0, True), Plateau()
    ours, expected = [], []
    for value in values:
        schedule.record(plateau, value, 0.02)
        theirs.step(value)
        ours.append(plateau.factor * schedule.at(0.5)[0])
        expected.append(optimizer.param_groups[0]["lr"])
    assert ours == pytest.approx(expected, abs=1e-12)
    assert ours[-1] < 0.1


@pytest.mark.parametrize(("steps", "warmup_steps"), [(50, 5), (40, 20), (10, 1)])
def test_with_warmup_equals_torch(steps: int, warmup_steps: int) -> None:
    def both(optimizer: torch.optim.Optimizer) -> SequentialLR:
        rise = LinearLR(optimizer, start_factor=1e-12, end_factor=1, total_iters=warmup_steps)
        fall = CosineAnnealingLR(optimizer, T_max=steps - warmup_steps)
        return SequentialLR(optimizer, [rise, fall], [warmup_steps])

    factor, share = cosine(DEFAULT), warmup_steps / steps
    ours = [with_warmup(factor, step / steps, share) for step in range(steps)]
    assert ours == pytest.approx(rates(both, steps), abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("name", SCHEDULES)
def test_bounds(name: str, warmup: float) -> None:
    factor = SCHEDULES[name](ScheduleOptions(name))  # type: ignore[arg-type]
    values = [with_warmup(factor, i / 1000, warmup) for i in range(1001)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == pytest.approx(1, abs=0.1)
    assert with_warmup(factor, warmup, warmup) == pytest.approx(factor(0))
    assert with_warmup(factor, 0.05, 0.1) == pytest.approx(0.5 * factor(0))
    halfway = with_warmup(cosine(DEFAULT), warmup + (1 - warmup) / 3, warmup)
    assert halfway == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


def test_progress_of_a_stage_and_of_the_run() -> None:
    epochs = (4, 6, 10)
    stage = Schedule(cosine(DEFAULT))
    run = Schedule(cosine(DEFAULT), whole_run=True)
    assert stage.progress(epochs, 1, 3, 0.5) == 3.5 / 6
    assert run.progress(epochs, 1, 3, 0.5) == (4 + 3.5) / 20
    by_epoch = Schedule(cosine(DEFAULT), per_epoch=True)
    assert {by_epoch.progress(epochs, 0, 2, part) for part in (0.1, 0.9)} == {2.5 / 4}


def test_only_one_cycle_moves_the_momentum_and_only_where_there_is_one() -> None:
    cycle = ScheduleOptions("1cycle")
    assert make_schedule(cycle, 0.1, True).at(0.0)[1] == 0.95
    assert make_schedule(cycle, 0.0, True).at(0.45)[1] == pytest.approx(0.85)
    assert make_schedule(cycle, 0.1, False).at(0.5)[1] is None
    assert make_schedule(DEFAULT, 0.1, True).at(0.5)[1] is None
