from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from transferkit.training.monitor import Monitor
from transferkit.training.optimizers import OPTIMIZERS, set_rates
from transferkit.training.regularizers import Strengths
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.training.updates import Rules, Updater, make_updater

STAGE = PlannedStage("top 1", 1, 0.1, (0.0, 0.5, 1.0))


def column_of(name: str) -> int:
    return int(name[0]) if name else -1


def prepared(rules: Rules) -> tuple[nn.Module, Updater]:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    top = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model = nn.Sequential(stem, top, nn.Linear(8, 3))
    apply_stage(model, column_of, STAGE)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fabric = Fabric(accelerator="cpu", devices=1)
    updater = make_updater(model, model, column_of, STAGE, rules, start, fabric)
    set_rates(updater.optimizer, 0.1)
    return model, updater


def step(updater: Updater, number: int) -> bool:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(12, 6, generator=generator)
    labels = torch.randint(0, 3, (12,), generator=generator)
    loss = nn.functional.cross_entropy(updater.network(inputs), labels)
    updater.begin()
    updater.backward(loss)
    return updater.step(Monitor([]))


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "timm:lamb"])
def test_frozen_blocks_stay_bit_identical(name: str) -> None:
    rules = Rules(
        name,
        weight_decays=(0.1, 0.1),
        clipping=("norm", 1.0),
        penalties=Strengths(0.1, 0.1, 0.1, 0.1, 0.1),
        max_norm=("all", 0.5),
        ema=0.5,
    )
    model, updater = prepared(rules)
    start = copied(model)
    for number in range(4):
        step(updater, number)
    assert updater.average is not None
    assert not any(key.startswith("0.") for key in updater.average.tensors)
    for key, tensor in model.state_dict().items():
        if key.startswith("0."):
            assert torch.equal(tensor, start[key]), key
        elif key.endswith("weight"):
            assert not torch.equal(tensor, start[key]), key


@pytest.mark.parametrize("scope", ["head", "all"])
def test_max_norm_holds_after_every_step(scope: str) -> None:
    model, updater = prepared(Rules("momentum", max_norm=(scope, 0.4)))
    for number in range(6):
        step(updater, number)
        norms = {
            n: float(w.detach().norm(dim=1).max())
            for n, w in model.named_parameters()
            if w.ndim > 1
        }
        held = {"2.weight"} if scope == "head" else {"1.0.weight", "2.weight"}
        assert all(norms[name] <= 0.4 * (1 + 1e-6) for name in held)
    assert norms["0.0.weight"] > 0.4


def test_clipped_steps_are_told_and_the_loss_is_not_changed_by_penalties() -> None:
    assert step(prepared(Rules(clipping=("norm", 1e-4)))[1], 0)
    assert not step(prepared(Rules(clipping=("norm", 1e4)))[1], 0)
    assert not step(prepared(Rules())[1], 0)


def test_adaptive_clipping_spares_the_last_layer() -> None:
    (model, updater), (other, free) = (
        prepared(Rules(clipping=("adaptive", 1e-3))),
        prepared(Rules()),
    )
    assert step(updater, 0)
    step(free, 0)
    assert torch.equal(model[2].weight.grad, other[2].weight.grad)  # type: ignore[index]
    assert not torch.equal(model[1][0].weight.grad, other[1][0].weight.grad)  # type: ignore[index]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "timm:lion"])
def test_a_restored_updater_goes_on_alike(name: str) -> None:
    rules = Rules(name, ema=0.9)
    model, updater = prepared(rules)
    for number in range(5):
        if number == 2:
            weights, state = copied(model), updater.state_dict()
            state = torch.load(saved(state), weights_only=True)
        step(updater, number)
    other, restored = prepared(rules)
    other.load_state_dict(weights)
    restored.load_state_dict(state)
    for number in range(2, 5):
        step(restored, number)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())


def saved(state: Any) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_l1_finds_the_lasso_with_every_optimiser(name: str) -> None:
    """Half a square each: the lasso is the soft threshold of the targets, in closed form."""
    targets = torch.tensor([[1.0, -0.7, 0.05, -0.1, 0.0, 0.3]])
    model = nn.ModuleDict({"1": nn.Linear(6, 1, bias=False), "2": nn.Linear(6, 1, bias=False)})
    nn.init.constant_(model["1"].weight, 0.2)
    nn.init.constant_(model["2"].weight, 0.2)
    rules = Rules(name, weight_decays=(0.0, 0.0), penalties=Strengths(head_l1=0.2), ema=0.5)
    fabric = Fabric(accelerator="cpu", devices=1)
    updater = make_updater(model, model, column_of, STAGE, rules, {}, fabric)
    for number in range(300):
        set_rates(updater.optimizer, (1.0 if name == "adagrad" else 0.1) * (1 - number / 300))
        updater.begin()
        errors = [(model[n].weight - targets).square().sum() / 2 for n in ("1", "2")]
        updater.backward(errors[0] + errors[1])
        updater.step(Monitor([]))
    found = model["2"].weight.detach()
    expected = torch.tensor([[0.8, -0.5, 0.0, 0.0, 0.0, 0.1]])
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(model["1"].weight.detach(), targets, atol=0.01, rtol=0)
    assert updater.average is not None
    assert torch.equal(updater.average.tensors["2.weight"] == 0, expected == 0)


@pytest.mark.parametrize("rules", [Rules(ema=0.9), Rules(swa=1.0)])
def test_an_average_keeps_the_zeros_of_l1(rules: Rules) -> None:
    rules = replace(rules, penalties=Strengths(head_l1=0.05))
    _, updater = prepared(rules)
    average = updater.average
    assert average is not None
    for number in range(3):
        step(updater, number)
        average.end_epoch(number)
    with torch.no_grad():
        average.current["2.weight"][:, :2] = 0
        average.current["1.0.weight"][:, :2] = 0
    average.update()
    average.end_epoch(3)
    assert (average.tensors["2.weight"][:, :2] == 0).all()
    assert (average.tensors["1.0.weight"][:, :2] != 0).all()  # without L1
