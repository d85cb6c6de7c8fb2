"""What goes on inside the network while it trains: by block group on sampled steps, the norm of
the whole gradient on every step.

Only reads: a run with and without it has the same bits. What is read stays on the device until
the epoch is over, so that no step waits for it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.block_groups import is_opened
from transferkit.training.gradients import whole

EVERY = 16
"""Steps from one reading to the next; an epoch has at least one."""
RECTIFIERS = (nn.ReLU, nn.ReLU6)
BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
}
NEAR = 0.01  # of the range between the bounds


@dataclass
class Group:
    """A block group that trains, and what was read of it in this epoch.

    parameters: its own. output: the module whose result leaves it. readings: name -> scalars on
    the device. alive: (rectifier, units) -> (units,), whether a unit was ever above zero.
    """

    name: str
    column: int
    parameters: list[nn.Parameter] = field(default_factory=list)
    output: nn.Module | None = None
    rectifiers: list[nn.Module] = field(default_factory=list)
    bounded: list[nn.Module] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    readings: dict[str, list[Tensor]] = field(default_factory=dict)
    alive: dict[tuple[nn.Module, int], Tensor] = field(default_factory=dict)

    def note(self, name: str, value: Tensor) -> None:
        """Keep a scalar."""
        self.readings.setdefault(name, []).append(value)


class Monitor:
    """Reads gradients, updates and activations of every block group that trains in a stage.

    Around each step: `forward`, `backward`, `update`; at the end of an epoch `rows`. Of the steps
    of an epoch every 16th is read, from the middle on when there are fewer.
    scale: what the loss is multiplied by before `backward` (mixed half precision), read each time.
    reading: whether the step that is under way is read. norms: of the whole gradient, by step.
    """

    def __init__(self, groups: list[Group], scale: Callable[[], float] = lambda: 1.0) -> None:
        self.groups = groups
        self._scale = scale
        self._first = 0
        self.reading = False
        self.norms: list[Tensor] = []

    def begin(self, steps: int) -> None:
        """Forget the epoch before; steps: of the one that begins."""
        self._first = min(steps // 2, EVERY - 1)
        self.reading = False
        self.norms = []
        for group in self.groups:
            group.readings.clear()
            group.alive.clear()
            group.before.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what was read since `begin`, a dict for each group."""
        return {"norms": list(self.norms)} | {
            str(group.column): {
                "readings": {name: list(values) for name, values in group.readings.items()},
                "alive": [
                    (group.rectifiers.index(module), units, alive)
                    for (module, units), alive in group.alive.items()
                ],
            }
            for group in self.groups
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned."""
        self.norms = state.get("norms", [])  # of an earlier release: none
        for group in self.groups:
            own = state[str(group.column)]
            group.readings = own["readings"]
            group.alive = {
                (group.rectifiers[number], units): alive for number, units, alive in own["alive"]
            }

    @contextmanager
    def forward(self, step: int) -> Iterator[None]:
        """Read activations in the forward pass of a step, counted from 0, if it is sampled."""
        self.reading = step % EVERY == self._first
        hooks = [hook for group in self.groups for hook in _hooks(group)] if self.reading else []
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def backward(self) -> None:
        """Read the gradients after the backward pass, before anything clips them."""
        every = [p.grad for group in self.groups for p in group.parameters if p.grad is not None]
        if every:
            self.norms.append(_norm(every) / self._scale())
        for group in self.groups if self.reading else ():
            gradients = [p.grad for p in group.parameters if p.grad is not None]
            if gradients:
                group.note("gradient_norm", _norm(gradients) / self._scale())
            group.before = [parameter.detach().clone() for parameter in group.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Read after the optimiser's step how far it moved the weights."""
        if not self.reading:
            return
        for group in self.groups:
            steps = torch._foreach_sub(list(group.parameters), group.before)
            group.note("update_ratio", _norm(list(steps)) / _norm(group.before))
            group.before = []

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per group, from the stem to the head: group, depth, and mean readings.

        gradient_norm: L2 norm of the gradient of all the group's weights. update_ratio: L2 norm of
        the step over that of the weights. activation_mean, activation_std: of the group's output.
        dead: share of the rectifiers' units that were never above zero. saturated: share of
        logistic and tanh values within 1 % of a bound. What a group does not have is left out, as
        is what was not finite. global_norm_median, _95 and _max: of the whole gradient's norm over
        all steps of the epoch, before clipping, the same in every row.
        Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
        networks", AISTATS 2010, whose figures show the same quantities over depth.
        """
        norms = torch.stack(self.norms).double() if self.norms else torch.zeros(0)
        norms = norms[norms.isfinite()].cpu()
        shares = {"median": 0.5, "95": 0.95, "max": 1.0} if len(norms) else {}
        steps = {f"global_norm_{n}": float(norms.quantile(share)) for n, share in shares.items()}
        return [
            {"group": group.name, "depth": group.column, **_means(group), **_dead(group), **steps}
            for group in self.groups
        ]


def watch(
    classifier: nn.Module,
    names: tuple[str, ...],
    column_of: Callable[[str], int],
    scale: Callable[[], float] = lambda: 1.0,
) -> Monitor:
    """Return a monitor of every group with a parameter that trains.

    names: (G + 1,) of the plan's columns. column_of: name of a parameter or module -> column.
    """
    groups: dict[int, Group] = {}
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            column = column_of(name)
            groups.setdefault(column, Group(names[column], column)).parameters.append(parameter)
    for name, module in classifier.named_modules():
        group = groups.get(column_of(name))
        if group is None:
            continue
        outermost = column_of(name.rpartition(".")[0]) != group.column
        if outermost and any(True for _ in module.parameters()):
            group.output = _last_called(module)
        if isinstance(module, RECTIFIERS):
            group.rectifiers.append(module)
        if type(module) in BOUNDS:
            group.bounded.append(module)
    return Monitor([groups[column] for column in sorted(groups)], scale)


def _last_called(module: nn.Module) -> nn.Module:
    """Return what gives a module's result: a plain container may be run part by part."""
    while is_opened(module):
        *_, module = module.children()
    return module


def loss_scale(fabric: Any) -> Callable[[], float]:
    """Return what tells by how much a fabric scales the loss: 1 unless it trains in float16."""
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    return scaler.get_scale if scaler is not None else lambda: 1.0


def _hooks(group: Group) -> Iterator[Any]:
    if group.output is not None:
        yield group.output.register_forward_hook(lambda _m, _i, out: _read_output(group, out))
    for module in group.rectifiers:
        yield module.register_forward_hook(lambda m, _i, out: _read_rectifier(group, m, out))
    for module in group.bounded:
        yield module.register_forward_hook(lambda m, _i, out: _read_bounded(group, m, out))


@torch.no_grad()
def _read_output(group: Group, out: Any) -> None:
    if isinstance(out, Tensor) and out.numel() > 1:
        std, mean = torch.std_mean(out.detach().float(), correction=0)
        group.note("activation_mean", mean)
        group.note("activation_std", std)


@torch.no_grad()
def _read_rectifier(group: Group, module: nn.Module, out: Tensor) -> None:
    axis = 1 if out.ndim == 4 else -1  # (N, C, H, W), or (N, D) and (N, T, D)
    above = out.detach().amax(dim=[d for d in range(out.ndim) if d != axis % out.ndim]) > 0
    key = (module, len(above))
    group.alive[key] = above | group.alive[key] if key in group.alive else above


@torch.no_grad()
def _read_bounded(group: Group, module: nn.Module, out: Tensor) -> None:
    low, high = BOUNDS[type(module)]
    margin = NEAR * (high - low)
    values = out.detach()
    group.note("saturated", ((values < low + margin) | (values > high - margin)).float().mean())


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of all values together."""
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return whole(torch.linalg.vector_norm(torch.stack(list(norms))))


def _means(group: Group) -> dict[str, float]:
    means = {name: float(torch.stack(v).mean()) for name, v in group.readings.items()}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _dead(group: Group) -> dict[str, float]:
    units = sum(len(alive) for alive in group.alive.values())
    dead = sum(int((~alive).sum()) for alive in group.alive.values())
    return {"dead": dead / units} if units else {}
