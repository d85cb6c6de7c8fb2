"""Optimisers: how gradients become steps, and how parameters are grouped for them."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]
TIMM = "timm:"


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    column_of: Callable[[str], int],
    multipliers: tuple[float, ...],
    weight_decays: tuple[float, float],
) -> Groups:
    """Split the parameters that train into optimiser groups, one rate and one decay each.

    named: every parameter with its name. column_of: name -> column of the plan. weight_decays: of
    the backbone and of the head. Each group carries `multiplier`, its learning rate relative to
    the stage's, and `column`. Biases and normalisation weights (one dimension or none) get no
    weight decay.
    """
    head = len(multipliers) - 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        column = column_of(name)
        if multipliers[column] == 0:
            continue
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (column, decays),
            {
                "params": [],
                "multiplier": multipliers[column],
                "column": column,
                "weight_decay": weight_decays[column == head] if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


@dataclass(frozen=True)
class Kind:
    """A family member. make: (groups, hyperparameters) -> optimiser; rates are set later.

    hyper: the hyperparameters it takes, by their option's name, with their defaults.
    own_decay: it applies the groups' weight decay itself; else see `decay_before_step`.
    fused: torch has it as one loop over all parameters, on CPUs and GPUs.
    speed, quality: of convergence, as the textbook grades them.
    """

    make: Callable[[Groups, dict[str, float]], torch.optim.Optimizer]
    summary: str
    speed: str
    quality: str
    hyper: Mapping[str, float] = field(default_factory=dict)
    own_decay: bool = False
    fused: bool = False


def sgd(groups: Groups, hyper: dict[str, float]) -> torch.optim.Optimizer:
    """Plain gradient descent, with momentum when `hyper` has one.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    return torch.optim.SGD(groups, lr=1.0, momentum=hyper.get("momentum", 0.0))


def nesterov(groups: Groups, hyper: dict[str, float]) -> torch.optim.Optimizer:
    """Momentum whose gradient is taken a step ahead.

    Source: Sutskever et al., "On the importance of initialization and momentum", ICML 2013.
    """
    return torch.optim.SGD(groups, lr=1.0, momentum=hyper["momentum"], nesterov=True)


def adagrad(groups: Groups, hyper: dict[str, float]) -> torch.optim.Optimizer:
    """AdaGrad. Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011."""
    return torch.optim.Adagrad(groups, lr=1.0, eps=hyper["eps"])


def rmsprop(groups: Groups, hyper: dict[str, float]) -> torch.optim.Optimizer:
    """RMSProp. Source: Tieleman and Hinton, "Neural Networks for Machine Learning", 6e, 2012."""
    return torch.optim.RMSprop(groups, lr=1.0, alpha=hyper["rho"], eps=hyper["eps"])


def _adam_like(
    kind: Callable[..., torch.optim.Optimizer],
) -> Callable[[Groups, dict[str, float]], torch.optim.Optimizer]:
    def make(groups: Groups, hyper: dict[str, float]) -> torch.optim.Optimizer:
        return kind(groups, lr=1.0, betas=(hyper["beta1"], hyper["beta2"]), eps=hyper["eps"])

    return make


MOMENTUM = {"momentum": 0.9}
MOMENTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(sgd, "lr times the gradient", "slow", "good", fused=True),
    "momentum": Kind(sgd, "a running sum of gradients", "medium", "good", MOMENTUM, fused=True),
    "nesterov": Kind(
        nesterov,
        "momentum, its gradient taken a step ahead",
        "medium",
        "good",
        MOMENTUM,
        fused=True,
    ),
    "adagrad": Kind(
        adagrad,
        "the gradient over the root of all its squares so far",
        "fast",
        "poor: stops too early",
        {"eps": 1e-10},
        fused=True,
    ),
    "rmsprop": Kind(
        rmsprop,
        "the gradient over a running root mean square of it",
        "fast",
        "fair to good",
        {"rho": 0.99, "eps": 1e-8},
    ),
    "adam": Kind(
        _adam_like(torch.optim.Adam),
        "momentum over RMSProp's root; weight decay joins the gradient (L2)",
        "fast",
        "fair to good",
        MOMENTS,
        own_decay=True,
        fused=True,
    ),
    "adamax": Kind(
        _adam_like(torch.optim.Adamax),
        "Adam with the largest recent gradient in place of the root",
        "fast",
        "fair to good",
        MOMENTS,
    ),
    "nadam": Kind(
        _adam_like(torch.optim.NAdam), "Adam with Nesterov's step", "fast", "fair to good", MOMENTS
    ),
    "adamw": Kind(
        _adam_like(torch.optim.AdamW),
        "Adam with decoupled weight decay",
        "fast",
        "fair to good",
        MOMENTS,
        own_decay=True,
        fused=True,
    ),
}
"""Grades: Géron, "Hands-On Machine Learning", 3rd edition, 2022, table 11-2."""


def make_optimizer(
    name: str, groups: Groups, hyper: Mapping[str, float], fused: bool = True
) -> torch.optim.Optimizer:
    """Build an optimiser by its name in OPTIMIZERS or by `timm:NAME`.

    hyper: hyperparameters that differ from the defaults. The learning rate comes with every step
    from `set_rates`. fused: update all parameters in one loop, where torch can; not those of which
    a process holds a part.
    """
    if name.startswith(TIMM):
        return timm_optimizer(name.removeprefix(TIMM), groups, hyper)
    kind = OPTIMIZERS[name]
    decays = [group["weight_decay"] for group in groups]
    if not kind.own_decay:
        groups = [{**group, "weight_decay": 0.0} for group in groups]
    if (
        fused and kind.fused
    ):  # by group: as an argument it would also take over the scaling of half precision
        groups = [{**group, "fused": True} for group in groups]
    optimizer = kind.make(groups, {**kind.hyper, **hyper})
    optimizer.register_load_state_dict_pre_hook(stay_as_fused)
    if not kind.own_decay:
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["decoupled_decay"] = decay
        optimizer.register_step_pre_hook(decay_before_step)
    return optimizer


def timm_optimizer(name: str, groups: Groups, hyper: Mapping[str, float]) -> torch.optim.Optimizer:
    """Build one of timm's optimisers, which applies weight decay in its own way."""
    import transferkit.timm_import  # noqa: F401  # isort: skip
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=name, lr=1.0)
    for group in optimizer.param_groups:
        group |= {key: hyper[key] for key in ("momentum", "eps") if key in hyper}
        if "betas" in group:
            first, second, *rest = group["betas"]
            group["betas"] = (hyper.get("beta1", first), hyper.get("beta2", second), *rest)
    return optimizer


def hyperparameters_of(name: str) -> set[str]:
    """Return the hyperparameters that an optimiser takes, by their option's name.

    Raises ValueError, saying why, when there is no such optimiser, or it cannot run here.
    """
    if not name.startswith(TIMM):
        if name not in OPTIMIZERS:
            raise ValueError(f"must be one of {', '.join(OPTIMIZERS)}, or timm:NAME")
        return set(OPTIMIZERS[name].hyper)
    import transferkit.timm_import  # noqa: F401  # isort: skip
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    name = name.removeprefix(TIMM)
    if name not in list_optimizers():
        close = difflib.get_close_matches(name, list_optimizers(), n=1)
        hint = f"; did you mean timm:{close[0]}?" if close else ""
        raise ValueError(f"is none of timm's optimisers{hint}")
    info = get_optimizer_info(name)
    if info.second_order:
        raise ValueError("needs second derivatives, which training does not compute")
    try:
        get_optimizer_class(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot be loaded: {error}") from None
    takes = {"momentum": info.has_momentum, "eps": info.has_eps, "beta1": info.has_betas}
    takes["beta2"] = info.has_betas
    return {key for key, has in takes.items() if has}


def gradient_scale(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | float:
    """Return by what an optimiser divides a parameter's gradient, apart from the rate.

    state, group: the parameter's. A steady gradient g moves it by rate * g / scale in a step: 1 for
    SGD, 1 - momentum where steps add up, the running root for Adam and its kin.
    """
    if "exp_inf" in state:
        return state["exp_inf"]
    if "exp_avg_sq" in state:
        filled = 1 - group["betas"][1] ** state.get("step", group.get("step", math.inf))
        return (state["exp_avg_sq"] / filled).sqrt() + group["eps"]
    for name in ("square_avg", "sum"):
        if name in state:
            return state[name].sqrt() + group["eps"]
    return 1 - group.get("momentum", 0.0)


def stay_as_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state to be loaded, of which it does not matter whether its steps were fused."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    kept = [{**new, "fused": own["fused"]} if "fused" in own else new for new, own in groups]
    return {**state, "param_groups": kept}


@torch.no_grad()
def decay_before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Shrink the weights that are about to move by their group's rate times decay.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    for group in optimizer.param_groups:
        if group["decoupled_decay"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decoupled_decay"])


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None = None) -> None:
    """Give every group its multiple of `lr`, and all of them the momentum, if there is one.

    momentum: of momentum and Nesterov, and the first beta of Adam and its kin.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None:
            group["momentum"] = momentum
