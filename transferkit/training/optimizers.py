"""Optimisers, and how parameters are grouped for them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    group_of: Callable[[str], int],
    multipliers: tuple[float, ...],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Split the parameters that train into optimiser groups, one rate and one decay each.

    named: every parameter with its name. group_of: name -> column of the plan. Each group carries
    `multiplier`, its learning rate relative to the stage's, and `column`. Biases and normalisation
    weights (one dimension or none) get no weight decay.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        column = group_of(name)
        if multipliers[column] == 0:
            continue
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (column, decays),
            {
                "params": [],
                "multiplier": multipliers[column],
                "column": column,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """AdamW. Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019."""
    return torch.optim.AdamW(groups, lr=lr)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": adamw,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its multiple of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
