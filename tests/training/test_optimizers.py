import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

from transferkit.training.optimizers import (
    OPTIMIZERS,
    hyperparameters_of,
    make_optimizer,
    parameter_groups,
    set_rates,
)

MULTIPLIERS = (0.0, 0.25, 0.5, 1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    low = nn.Sequential(nn.Conv2d(4, 5, 3), nn.GroupNorm(1, 5))
    top = nn.Sequential(nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model = nn.Sequential(stem, low, top, head)
    model.scale = nn.Parameter(torch.ones(()))  # type: ignore[assignment] # of the stem, no dimension
    return model


def column_of(name: str) -> int:
    first = name.split(".")[0]
    return int(first) if first.isdigit() else 0


def test_every_training_parameter_is_in_one_group_and_no_frozen_one() -> None:
    model = network()
    groups = parameter_groups(model.named_parameters(), column_of, MULTIPLIERS, (0.05, 0.05))
    found = [id(p) for group in groups for p in group["params"]]
    trains = [id(p) for name, p in model.named_parameters() if column_of(name) > 0]
    assert sorted(found) == sorted(trains)
    for group in groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert len(decays) == 1
        assert group["weight_decay"] == (0.05 if decays.pop() else 0.0)
        assert group["multiplier"] == MULTIPLIERS[group["column"]]
    assert sorted({group["column"] for group in groups}) == [1, 2, 3]


def test_a_parameter_without_dimension_has_no_decay() -> None:
    groups = parameter_groups(network().named_parameters(), column_of, (1.0,) * 4, (0.1, 0.1))
    (owner,) = [g for g in groups if any(p.ndim == 0 for p in g["params"])]
    assert (owner["column"], owner["weight_decay"]) == (0, 0.0)


def test_five_updates_equal_torch_with_groups_by_hand() -> None:
    ours, theirs = network(), network()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    groups = parameter_groups(ours.named_parameters(), column_of, MULTIPLIERS, (0.05, 0.05))
    optimizer = make_optimizer("adamw", groups, {})
    one, two, three = theirs[1], theirs[2], theirs[3][2]
    reference = torch.optim.AdamW(
        [
            {"params": [one[0].weight], "lr": 0.25e-2, "weight_decay": 0.05},
            {"params": [one[0].bias, *one[1].parameters()], "lr": 0.25e-2, "weight_decay": 0},
            {"params": [two[0].weight], "lr": 0.5e-2, "weight_decay": 0.05},
            {"params": [two[0].bias, *two[1].parameters()], "lr": 0.5e-2, "weight_decay": 0},
            {"params": [three.weight], "lr": 1e-2, "weight_decay": 0.05},
            {"params": [three.bias], "lr": 1e-2, "weight_decay": 0},
        ],
        fused=True,  # normalisation leaves rounding alone of some gradients; Adam scales it up
    )
    peaks = [group["lr"] for group in reference.param_groups]
    start = copy.deepcopy(ours.state_dict())
    for step in range(5):
        inputs = torch.randn(4, 3, 9, 9)
        labels = torch.tensor([0, 1, 2, 0])
        factor = 1 - step / 10
        set_rates(optimizer, 1e-2 * factor)
        for group, peak in zip(reference.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        for model, updater in ((ours, optimizer), (theirs, reference)):
            updater.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            updater.step()
    for name, tensor in ours.named_parameters():
        assert torch.allclose(tensor, theirs.get_parameter(name), rtol=0, atol=1e-8), name
        assert torch.equal(tensor, start[name]) == (column_of(name) == 0), name


def test_backbone_and_head_can_decay_differently() -> None:
    groups = parameter_groups(network().named_parameters(), column_of, MULTIPLIERS, (0.1, 0.3))
    decays = {(g["column"], g["weight_decay"]) for g in groups}
    assert decays == {(1, 0.1), (1, 0.0), (2, 0.1), (2, 0.0), (3, 0.3), (3, 0.0)}


Make = Callable[..., optim.Optimizer]
REFERENCES: dict[str, tuple[Make, dict[str, float]]] = {
    "sgd": (lambda p, lr: optim.SGD(p, lr), {}),
    "momentum": (lambda p, lr: optim.SGD(p, lr, momentum=0.8), {"momentum": 0.8}),
    "nesterov": (lambda p, lr: optim.SGD(p, lr, momentum=0.9, nesterov=True), {}),
    "adagrad": (lambda p, lr: optim.Adagrad(p, lr, eps=1e-4), {"eps": 1e-4}),
    "rmsprop": (lambda p, lr: optim.RMSprop(p, lr, alpha=0.9), {"rho": 0.9}),
    "adam": (lambda p, lr: optim.Adam(p, lr, (0.8, 0.99)), {"beta1": 0.8, "beta2": 0.99}),
    "adamax": (lambda p, lr: optim.Adamax(p, lr, eps=1e-3), {"eps": 1e-3}),
    "nadam": (lambda p, lr: optim.NAdam(p, lr, (0.8, 0.999)), {"beta1": 0.8}),
    "adamw": (lambda p, lr: optim.AdamW(p, lr, (0.9, 0.9), weight_decay=0), {"beta2": 0.9}),
    "timm:sgd": (lambda p, lr: optim.SGD(p, lr, momentum=0.9, nesterov=True), {}),
    "timm:momentum": (lambda p, lr: optim.SGD(p, lr, momentum=0.5), {"momentum": 0.5}),
    "timm:adamw": (lambda p, lr: optim.AdamW(p, lr, (0.8, 0.999), weight_decay=0), {"beta1": 0.8}),
}


def follow(optimizer: optim.Optimizer, weight: nn.Parameter, before: Callable[[], None]) -> None:
    target = torch.linspace(-1, 1, weight.numel()).view_as(weight)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + step)
        optimizer.zero_grad()
        (weight - target).pow(4).sum().backward()
        before()
        optimizer.step()


def test_every_optimizer_has_a_reference() -> None:
    assert OPTIMIZERS.keys() <= REFERENCES.keys()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", REFERENCES)
def test_steps_equal_those_of_torch(name: str, decay: float) -> None:
    make, hyper = REFERENCES[name]
    start = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) - 0.5  # far from diverging
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "multiplier": 1.0, "column": 0, "weight_decay": decay}
    optimizer, reference = make_optimizer(name, [group], hyper), make([theirs], 0.05)
    own = name.startswith("timm:") or OPTIMIZERS[name].own_decay
    reference.param_groups[0]["weight_decay"] = decay if own else 0.0

    @torch.no_grad()
    def decoupled() -> None:
        if not own:
            theirs.mul_(1 - reference.param_groups[0]["lr"] * decay)

    follow(optimizer, ours, lambda: None)
    follow(reference, theirs, decoupled)
    assert not torch.allclose(ours, start, atol=1e-3)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_steps_are_fused_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    kinds = {"_fused_sgd_", "_fused_adagrad_", "_fused_adam_", "_fused_adamw_"}
    for kind in kinds:
        real = getattr(torch, kind)

        def counting(*given: Any, kind: str = kind, real: Any = real, **more: Any) -> Any:
            called.append(kind)
            return real(*given, **more)

        monkeypatch.setattr(torch, kind, counting)
    for name, kind in OPTIMIZERS.items():
        called.clear()
        weight = nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        group = {"params": [weight], "multiplier": 1.0, "column": 0, "weight_decay": 0.0}
        make_optimizer(name, [group], {}).step()
        assert len(called) == kind.fused, name
        assert not weight.equal(torch.ones(2, 2))
    assert [name for name, kind in OPTIMIZERS.items() if not kind.fused] == [
        *("rmsprop", "adamax", "nadam")
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
def test_steps_go_on_from_those_of_the_other_kind(name: str, fused: bool) -> None:
    start = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    groups = [
        {"params": [weight], "multiplier": 1.0, "column": 0, "weight_decay": 0.1}
        for weight in weights
    ]
    one = make_optimizer(name, [groups[0]], {}, fused=fused)
    other = make_optimizer(name, [groups[1]], {}, fused=not fused)
    follow(one, weights[0], lambda: None)
    weights[1].data.copy_(weights[0].data)
    kept = other.param_groups[0].get("fused")
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.param_groups[0].get("fused") == kept
    for optimizer, weight in zip((one, other), weights, strict=True):
        follow(optimizer, weight, lambda: None)
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


@pytest.mark.parametrize("name", ["timm:lion", "timm:lamb", "timm:adan", "timm:radam", "timm:muon"])
def test_optimizers_of_timm_descend(name: str) -> None:
    weight = nn.Parameter(torch.full((3, 4), 2.0))
    group = {"params": [weight], "multiplier": 1.0, "column": 0, "weight_decay": 0.0}
    hyper = {"beta1": 0.8} if "beta1" in hyperparameters_of(name) else {}
    optimizer = make_optimizer(name, [group], hyper)
    follow(optimizer, weight, lambda: None)
    assert weight.abs().sum() < 24
    assert optimizer.param_groups[0].get("betas", (0.8,))[0] == 0.8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adamm", "must be one of sgd"),
        ("timm:lionn", "did you mean timm:lion"),
        ("timm:adahessian", "second derivatives"),
    ],
)
def test_an_optimizer_that_cannot_run_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        hyperparameters_of(name)


def test_momentum_moves_where_the_optimizer_keeps_it() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    group = {"params": [weight], "multiplier": 0.5, "column": 0, "weight_decay": 0.0}
    one, other = (make_optimizer(name, [dict(group)], {}) for name in ("nesterov", "adamw"))
    set_rates(one, 0.2, 0.7)
    set_rates(other, 0.2, 0.7)
    assert (one.param_groups[0]["lr"], one.param_groups[0]["momentum"]) == (0.1, 0.7)
    assert other.param_groups[0]["betas"] == (0.7, 0.999)
