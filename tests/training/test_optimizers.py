import copy

import torch
from torch import nn

from transferkit.training.optimizers import OPTIMIZERS, parameter_groups, set_learning_rate

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
    groups = parameter_groups(model.named_parameters(), column_of, MULTIPLIERS, 0.05)
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
    groups = parameter_groups(network().named_parameters(), column_of, (1.0,) * 4, 0.1)
    (owner,) = [g for g in groups if any(p.ndim == 0 for p in g["params"])]
    assert (owner["column"], owner["weight_decay"]) == (0, 0.0)


def test_five_updates_equal_torch_with_groups_by_hand() -> None:
    ours, theirs = network(), network()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    groups = parameter_groups(ours.named_parameters(), column_of, MULTIPLIERS, 0.05)
    optimizer = OPTIMIZERS["adamw"](groups, 1e-2)
    one, two, three = theirs[1], theirs[2], theirs[3][2]
    reference = torch.optim.AdamW(
        [
            {"params": [one[0].weight], "lr": 0.25e-2, "weight_decay": 0.05},
            {"params": [one[0].bias, *one[1].parameters()], "lr": 0.25e-2, "weight_decay": 0},
            {"params": [two[0].weight], "lr": 0.5e-2, "weight_decay": 0.05},
            {"params": [two[0].bias, *two[1].parameters()], "lr": 0.5e-2, "weight_decay": 0},
            {"params": [three.weight], "lr": 1e-2, "weight_decay": 0.05},
            {"params": [three.bias], "lr": 1e-2, "weight_decay": 0},
        ]
    )
    peaks = [group["lr"] for group in reference.param_groups]
    start = copy.deepcopy(ours.state_dict())
    for step in range(5):
        inputs = torch.randn(4, 3, 9, 9)
        labels = torch.tensor([0, 1, 2, 0])
        factor = 1 - step / 10
        set_learning_rate(optimizer, 1e-2 * factor)
        for group, peak in zip(reference.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        for model, updater in ((ours, optimizer), (theirs, reference)):
            updater.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            updater.step()
    for name, tensor in ours.named_parameters():
        assert torch.allclose(tensor, theirs.get_parameter(name), rtol=0, atol=1e-8), name
        assert torch.equal(tensor, start[name]) == (column_of(name) == 0), name
