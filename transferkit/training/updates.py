"""One step: from a loss to changed weights, and what a stage needs for it."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from transferkit import processes
from transferkit.training.averaging import Average, make_average
from transferkit.training.gradients import CLIPPINGS
from transferkit.training.monitor import Monitor
from transferkit.training.optimizers import gradient_scale, make_optimizer, parameter_groups
from transferkit.training.regularizers import (
    Strengths,
    Term,
    constrained,
    max_norm_,
    penalized,
    penalty_terms,
    soft_threshold_,
)
from transferkit.training.stages import PlannedStage


@dataclass(frozen=True)
class Rules:
    """How a gradient becomes a step.

    optimizer, hyper: see `make_optimizer`. weight_decays: of the backbone and of the head.
    clipping: (row of CLIPPINGS, limit), or None. max_norm: (scope, limit), or None. ema: decay of
    the moving average of the weights, swa: share of a stage's epochs in their mean, 0 for none.
    """

    optimizer: str = "adamw"
    hyper: Mapping[str, float] = field(default_factory=dict)
    weight_decays: tuple[float, float] = (0.05, 0.05)
    clipping: tuple[str, float] | None = None
    penalties: Strengths = field(default_factory=Strengths)
    max_norm: tuple[str, float] | None = None
    ema: float = 0.0
    swa: float = 0.0


@dataclass
class Updater:
    """What turns losses into steps during one stage.

    classifier: what trains. network, optimizer: as Fabric wraps them. clippable: what is clipped.
    terms: the penalties; due: before the step's first backward pass, and then none. shrunk:
    identity of a weight -> strength of L1. held: the weights under max-norm. fresh: the state of
    the optimiser before its first step.
    """

    fabric: Any
    classifier: nn.Module
    network: nn.Module
    optimizer: Any
    rules: Rules
    clippable: list[nn.Parameter]
    terms: list[Term]
    shrunk: Mapping[int, float]
    held: list[Tensor]
    average: Average | None
    fresh: dict[str, Any]
    due: list[Term] = field(default_factory=list, init=False)

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate between epochs."""
        return self.network

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)
        self.due = self.terms

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss [], the first time in a step with the penalties."""
        self.fabric.backward(penalized(loss, self.due))
        self.due = []

    def step(self, monitor: Monitor) -> bool:
        """Take one step down the gradient; return whether it was clipped.

        monitor: reads the gradient before it is clipped, and what the step did.
        """
        self.reduce()
        monitor.backward()
        clipped = self.clip()
        self.optimizer.step()
        self.shrink()
        self.hold()
        monitor.update()
        if self.average is not None:
            self.average.update()
        return clipped

    def reduce(self) -> None:
        """Let all processes have the mean of their gradients."""
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        processes.average_(p.grad for p in every if p.grad is not None)

    def end_epoch(self, epoch: int) -> None:
        """Tell the average, if there is one, that an epoch (from 0) is over."""
        if self.average is not None:
            self.average.end_epoch(epoch)

    def clip(self) -> bool:
        """Clip the gradients, if that is wanted; return whether that changed them."""
        if self.rules.clipping is None:
            return False
        # an infinite norm clips nothing, but undoes the loss scaling of half precision
        self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=math.inf, error_if_nonfinite=False
        )
        kind, limit = self.rules.clipping
        return CLIPPINGS[kind](self.clippable, limit)

    def shrink(self) -> None:
        """Take L1's proximal step, as long as the optimiser's own, so that zeros are exact.

        A weight stays zero while its loss gradient is smaller than the strength.
        Source: Yun, Lozano and Yang, "Adaptive Proximal Gradient Methods for Structured Neural
        Networks", NeurIPS 2021.
        """
        states = self.optimizer.optimizer.state if self.shrunk else {}
        for group in self.optimizer.param_groups if self.shrunk else ():
            for weight in group["params"]:
                if id(weight) in self.shrunk and weight.grad is not None:
                    scale = gradient_scale(states.get(weight, {}), group)
                    soft_threshold_(weight, group["lr"] * self.shrunk[id(weight)] / scale)

    def hold(self) -> None:
        """Bring weights that outgrew the max-norm back to it."""
        for weight in self.held:
            assert self.rules.max_norm is not None
            max_norm_(weight, self.rules.max_norm[1])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        average = self.average and self.average.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def restart(self) -> None:
        """Forget all steps; the average begins at the weights as they are now."""
        self.optimizer.load_state_dict(copy.deepcopy(self.fresh))
        if self.average is not None:
            self.average.restart()


def make_updater(
    classifier: nn.Module,
    network: nn.Module,
    column_of: Callable[[str], int],
    stage: PlannedStage,
    rules: Rules,
    pretrained: Mapping[str, Tensor],
    fabric: Any,
) -> Updater:
    """Prepare the steps of one stage, whose parameters train already (see `apply_stage`).

    network: the part of the classifier that the stage runs. pretrained: name -> what l2_sp draws
    a parameter to.
    """
    head = len(stage.multipliers) - 1
    named = [(name, p) for name, p in classifier.named_parameters() if p.requires_grad]

    def in_head(name: str) -> bool:
        return column_of(name) == head

    l1 = {name: rules.penalties.l1_of(in_head(name), p) for name, p in named}
    groups = parameter_groups(named, column_of, stage.multipliers, rules.weight_decays)
    average = make_average(classifier, column_of, stage, rules.ema, rules.swa)
    if average is not None:
        average.sparse = frozenset(name for name, strength in l1.items() if strength)
    network, optimizer = fabric.setup(network, make_optimizer(rules.optimizer, groups, rules.hyper))
    return Updater(
        fabric,
        classifier,
        network,
        optimizer,
        rules,
        clippable_parameters(classifier, named, rules),
        penalty_terms(named, in_head, rules.penalties, pretrained),
        {id(p): l1[name] for name, p in named if l1[name]},
        constrained(classifier, in_head, rules.max_norm[0]) if rules.max_norm else [],
        average,
        copy.deepcopy(optimizer.state_dict()),
    )


def clippable_parameters(
    classifier: nn.Module, named: list[tuple[str, nn.Parameter]], rules: Rules
) -> list[nn.Parameter]:
    """Return what is clipped: all, but adaptively all but the last layer, which starts at zero."""
    layers = [m for m in classifier.modules() if isinstance(m, nn.Linear)]
    last = set(map(id, layers[-1].parameters())) if layers else set()
    adaptive = rules.clipping is not None and rules.clipping[0] == "adaptive"
    return [p for _, p in named if not (adaptive and id(p) in last)]
