"""What is read inside the network equals what it is, by hand, and reading changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transferkit.finetuning.diagnosis import diagnose
from transferkit.recipes.reading import load_config
from transferkit.training.monitor import EVERY, Group, Monitor, watch


class Deep(nn.Module):
    """Layers of one width, each a block group, and a head."""

    def __init__(self, depth: int, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(width, width), activation()) for _ in range(depth)]
        self.backbone = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))


def column_of(depth: int) -> Callable[[str], int]:
    def find(name: str) -> int:
        parts = name.split(".")
        if parts[0] == "head":
            return depth
        return int(parts[1]) if len(parts) > 1 else -1

    return find


def monitor_of(model: Deep) -> Monitor:
    depth = len(model.backbone)
    names = (*(f"block {i}" for i in range(depth)), "head")
    return watch(model, names, column_of(depth))


def readings(model: Deep, epochs: int = 3, steps: int = 8) -> tuple[list[Any], list[Any]]:
    """Train on made-up vectors; return the rows of both tables."""
    torch.manual_seed(1)
    width = model.head.in_features
    inputs = torch.randn(64, width)
    labels = (inputs @ torch.randn(width, 5)).argmax(1)
    monitor, optimizer = monitor_of(model), torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitored, rows = [], []
    for epoch in range(1, epochs + 1):
        monitor.begin(steps)
        losses = []
        key = {"stage": 0, "stage_name": "all", "epoch": epoch}
        for step in range(steps):
            with monitor.forward(step):
                loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            monitor.backward()
            optimizer.step()
            monitor.update()
            losses.append(loss.item())
        monitored += [key | row for row in monitor.rows()]
        rows.append(key | {"train_loss": sum(losses) / steps})
    return monitored, rows


def network(
    activation: Callable[[], nn.Module],
    std: Callable[[int], float],
    depth: int = 20,
    width: int = 48,
) -> Deep:
    torch.manual_seed(0)
    model = Deep(depth, width, activation)
    for block in model.backbone:
        nn.init.normal_(block[0].weight, 0, std(width))  # type: ignore[index]
        nn.init.zeros_(block[0].bias)  # type: ignore[index]
    return model


def test_one_step_by_hand() -> None:
    torch.manual_seed(0)
    model = Deep(2, 4, nn.ReLU)
    nn.init.normal_(model.head.weight)
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    monitor, optimizer = monitor_of(model), torch.optim.SGD(model.parameters(), lr=0.1)
    monitor.begin(1)
    hidden = model.backbone[0](inputs)
    with monitor.forward(0):
        loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    monitor.backward()
    before = [p.detach().clone() for p in model.backbone[0].parameters()]
    norm = torch.cat([p.grad.flatten() for p in model.backbone[0].parameters()]).norm()  # type: ignore[union-attr]
    optimizer.step()
    monitor.update()
    row, _, head = monitor.rows()
    assert (row["group"], row["depth"], head["group"]) == ("block 0", 0, "head")
    assert row["gradient_norm"] == pytest.approx(norm.item())
    weights = torch.cat([p.flatten() for p in before]).norm()
    assert row["update_ratio"] == pytest.approx(0.1 * norm.item() / weights.item(), rel=1e-4)
    assert row["activation_mean"] == pytest.approx(hidden.mean().item())
    assert row["activation_std"] == pytest.approx(hidden.std(correction=0).item())
    assert row["dead"] == pytest.approx((hidden.amax(0) <= 0).float().mean().item())
    assert "saturated" not in row
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()  # type: ignore[union-attr]
    for name in ("median", "95", "max"):
        assert row[f"global_norm_{name}"] == head[f"global_norm_{name}"] == pytest.approx(whole)


def test_the_norm_of_the_whole_gradient_is_read_on_every_step() -> None:
    weight = nn.Parameter(torch.zeros(2))
    monitor = Monitor([Group("head", 0, [weight])], lambda: 2.0)
    monitor.begin(100)
    for step in range(100):
        with monitor.forward(step):
            weight.grad = torch.tensor([3.0, 4.0]) * step
        monitor.backward()
        if step == 49:
            state = monitor.state_dict()
            monitor.begin(100)
            monitor.load_state_dict(state)
    (row,) = monitor.rows()
    expected = np.quantile(2.5 * np.arange(100), [0.5, 0.95, 1])
    found = [row[f"global_norm_{name}"] for name in ("median", "95", "max")]
    assert found == pytest.approx(expected)
    del state["norms"]  # as an earlier release left it
    monitor.load_state_dict(state)
    assert monitor.norms == []


def test_saturated_and_dead_units_are_counted() -> None:
    model = Deep(2, 4, nn.Tanh)
    with torch.no_grad():
        for block in model.backbone:
            block[0].weight.zero_()  # type: ignore[index]
        model.backbone[0][0].bias.copy_(torch.tensor([5.0, -5.0, 0.1, 1.0]))  # type: ignore[index]
    monitored, _ = readings(model, 1, 1)
    assert [row.get("saturated") for row in monitored] == [0.5, 0.0, None]
    model = Deep(1, 4, nn.ReLU)
    with torch.no_grad():
        model.backbone[0][0].weight.zero_()  # type: ignore[index]
        model.backbone[0][0].bias.copy_(torch.tensor([1.0, -1.0, -1.0, -1.0]))  # type: ignore[index]
    assert readings(model, 1, 1)[0][0]["dead"] == 0.75


def test_frozen_groups_are_left_out_and_few_steps_are_read() -> None:
    model = Deep(3, 4, nn.ReLU)
    model.backbone[0].requires_grad_(False)
    monitor = monitor_of(model)
    assert [group.name for group in monitor.groups] == ["block 1", "block 2", "head"]
    for steps, expected in ((1, 1), (5, 1), (EVERY, 1), (3 * EVERY, 3)):
        monitor.begin(steps)
        for step in range(steps):
            with monitor.forward(step):
                model(torch.randn(2, 4)).sum().backward()
            monitor.backward()
            monitor.update()
        assert len(monitor.groups[0].readings["gradient_norm"]) == expected


def test_reading_changes_no_bit() -> None:
    read = network(nn.Tanh, lambda n: n**-0.5, 3)
    readings(read)
    assert all(not module._forward_hooks for module in read.modules())
    plain = network(nn.Tanh, lambda n: n**-0.5, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "rows", lambda self: [])
        patch.setattr("transferkit.training.monitor.EVERY", 10**9 + 1)
        patch.setattr(Monitor, "begin", lambda self, steps: setattr(self, "_first", -1))
        readings(plain)
    for ours, theirs in zip(read.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def diagnosed(monitored: list[Any], epochs: list[Any], num_classes: int) -> list[str]:
    config = load_config(None, (), {"backbone.name": "mlp"})
    *lines, last = diagnose(monitored, epochs, num_classes, config, Path("r")) or [""]
    assert last.startswith("next: transferkit finetune --recipe r --") or not last
    return lines


SICK = {
    "logistic, Glorot": (nn.Sigmoid, lambda n: n**-0.5, "vanishing"),
    "logistic, normal 1": (nn.Sigmoid, lambda n: 1.0, "saturated"),
    "tanh, normal 1": (nn.Tanh, lambda n: 1.0, "exploding"),
    "tanh, normal 0.01": (nn.Tanh, lambda n: 0.01, "vanishing"),
    "ReLU, normal 1": (nn.ReLU, lambda n: 1.0, "exploding"),
}
WELL = {
    "SELU, LeCun": (nn.SELU, lambda n: n**-0.5),
    "ReLU, He": (nn.ReLU, lambda n: (2 / n) ** 0.5),
    "tanh, Glorot": (nn.Tanh, lambda n: n**-0.5),
}


@pytest.mark.parametrize("name", SICK)
def test_a_badly_started_network_is_diagnosed(name: str) -> None:
    activation, std, word = SICK[name]
    width = 128 if word == "saturated" else 48
    lines = diagnosed(*readings(network(activation, std, width=width)), 5)
    assert any(word in line for line in lines), lines
    assert all(line.startswith("stage all: ") for line in lines)
    assert any("vanishing" in line or "exploding" in line for line in lines)


@pytest.mark.parametrize("name", WELL)
def test_a_well_started_network_is_not(name: str) -> None:
    assert diagnosed(*readings(network(*WELL[name])), 5) == []


def row(group: str, epoch: int = 1, **values: float) -> dict[str, Any]:
    return {"stage": 0, "epoch": epoch, "group": group, **values}


def test_what_the_lines_say() -> None:
    epochs = [{"stage": 0, "stage_name": "all", "train_loss": 1.0}]
    low = row("block 2", gradient_norm=3e-6, dead=0.8, update_ratio=0.3)
    lines = diagnosed(
        [row("stem", gradient_norm=2e-5), low, row("head", gradient_norm=1.0)], epochs, 5
    )
    assert [line.split("; try")[0] for line in lines] == [
        "stage all: block 2 receives 3e-6 of the head's gradient (1 more block likewise): "
        "vanishing",
        "stage all: 80% of the ReLUs of block 2 never fire: dead",
        "stage all: a step moves the weights of block 2 by 30% (0.1 % is usual): too fast",
    ]
    epochs = [{"stage": 0, "stage_name": "all", "train_loss": 500.0}]
    (line,) = diagnosed([row("head", gradient_norm=1.0)], epochs, 5)
    assert "the training loss was 500 in epoch 1, guessing has 1.6: exploding" in line


def test_a_head_that_starts_at_zero_is_no_finding() -> None:
    epochs = [{"stage": 0, "stage_name": "all", "train_loss": 1.0}] * 2
    first = [row("stem", 1, gradient_norm=0.0), row("head", 1, gradient_norm=1.0)]
    second = [row("stem", 2, gradient_norm=0.1), row("head", 2, gradient_norm=1.0)]
    assert diagnosed(first, epochs, 5) == []
    assert diagnosed(first + second, epochs, 5) == []
