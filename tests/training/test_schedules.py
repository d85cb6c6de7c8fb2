import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from transferkit.training.schedules import SCHEDULES, cosine, with_warmup


def rates(scheduler_of: object, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_equals_torch() -> None:
    expected = rates(lambda o: CosineAnnealingLR(o, T_max=50), 51)
    assert [cosine(step / 50) for step in range(51)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("steps", "warmup_steps"), [(50, 5), (40, 20), (10, 1)])
def test_with_warmup_equals_torch(steps: int, warmup_steps: int) -> None:
    def both(optimizer: torch.optim.Optimizer) -> SequentialLR:
        rise = LinearLR(optimizer, start_factor=1e-12, end_factor=1, total_iters=warmup_steps)
        fall = CosineAnnealingLR(optimizer, T_max=steps - warmup_steps)
        return SequentialLR(optimizer, [rise, fall], [warmup_steps])

    ours = [with_warmup(cosine, step / steps, warmup_steps / steps) for step in range(steps)]
    assert ours == pytest.approx(rates(both, steps), abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("name", SCHEDULES)
def test_bounds(name: str, warmup: float) -> None:
    values = [with_warmup(SCHEDULES[name], i / 1000, warmup) for i in range(1001)]
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == pytest.approx(1, abs=1e-4)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert with_warmup(SCHEDULES[name], warmup, warmup) == 1
    assert with_warmup(SCHEDULES[name], 0.05, 0.1) == 0.5
    halfway = with_warmup(cosine, warmup + (1 - warmup) / 3, warmup)
    assert halfway == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
