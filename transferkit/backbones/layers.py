"""Activations and initialisers: one table each; what goes with what is in `config.initializers`."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from transferkit.config.initializers import FANS, SCALES, parse_initializer

Layer = TypeVar("Layer", bound=nn.Module)
LEAKY_SLOPE = 0.01
PRELU_SLOPE = 0.25
SLOPED = {"leaky_relu": LEAKY_SLOPE, "prelu": PRELU_SLOPE}
"""Activations that take a slope for negative inputs -> its default."""

# name -> function (slope) -> module; none works in place, so that what is before stays readable
ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "identity": lambda slope: nn.Identity(),
    "logistic": lambda slope: nn.Sigmoid(),
    "tanh": lambda slope: nn.Tanh(),
    "relu": lambda slope: nn.ReLU(),  # Nair and Hinton, ICML 2010
    "leaky_relu": nn.LeakyReLU,  # Maas et al., ICML workshop 2013
    "prelu": lambda slope: nn.PReLU(init=slope),  # He et al., ICCV 2015: the slope is learned
    "elu": lambda slope: nn.ELU(),  # Clevert et al., ICLR 2016
    "selu": lambda slope: nn.SELU(),  # Klambauer et al., NeurIPS 2017
    "gelu": lambda slope: nn.GELU(),  # Hendrycks and Gimpel, 2016: x times the normal's CDF
    "silu": lambda slope: nn.SiLU(),  # Elfwing et al., 2018: x times the logistic of x
    "softplus": lambda slope: nn.Softplus(),  # Dugas et al., NeurIPS 2001
    "hard_swish": lambda slope: nn.Hardswish(),  # Howard et al., "MobileNetV3", ICCV 2019
}


def make_activation(name: str, slope: float | None = None) -> nn.Module:
    """Build an activation of the table, element by element on tensors of any shape.

    slope: below zero, for `leaky_relu` (0.01 if None) and, as its start, `prelu` (0.25 if None);
    the others have none. Raises KeyError for an unknown name.
    """
    return ACTIVATIONS[name](SLOPED.get(name, 0.0) if slope is None else slope)


def uninitialized(kind: Callable[..., Layer], *arguments: int, bias: bool) -> Layer:
    """Build a layer whose parameters are still to be set; the global generator is left alone.

    As torch's `skip_init`, which loads sympy for its first tensor and takes longer than it saves.
    """
    with torch.random.fork_rng(devices=[]):
        return kind(*arguments, bias=bias)


def fans(weight: Tensor) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight (out, in) or (out, in / groups, h, w).

    Each counts the connections of one unit: inputs or outputs times the kernel's area.
    """
    area = math.prod(weight.shape[2:])
    return weight.shape[1] * area, weight.shape[0] * area


def scaled_normal_(
    weight: Tensor, scale: float, fan: str, generator: torch.Generator | None
) -> Tensor:
    """Fill, in place, from a normal distribution with variance scale / fan."""
    return nn.init.normal_(weight, 0.0, math.sqrt(scale / chosen_fan(weight, fan)), generator)


def scaled_uniform_(
    weight: Tensor, scale: float, fan: str, generator: torch.Generator | None
) -> Tensor:
    """Fill, in place, evenly from -r..r with r = sqrt(3 scale / fan): variance scale / fan."""
    limit = math.sqrt(3 * scale / chosen_fan(weight, fan))
    return nn.init.uniform_(weight, -limit, limit, generator)


def chosen_fan(weight: Tensor, fan: str) -> float:
    """Return the fan of a weight that is called "in", "out" or "avg"."""
    fan_in, fan_out = fans(weight)
    return dict(zip(FANS, (fan_in, fan_out, (fan_in + fan_out) / 2), strict=True))[fan]


Fill = Callable[[Tensor, str, float, torch.Generator | None], Tensor]


def _scaled(scheme: str, fill: Callable[..., Tensor]) -> Fill:
    return lambda weight, fan, value, generator: fill(weight, SCALES[scheme][0], fan, generator)


# kind -> function (weight, fan, value, generator) that fills in place; see `Initializer`
INITIALIZERS: dict[str, Fill] = {
    "glorot_normal": _scaled("glorot", scaled_normal_),  # Glorot and Bengio, AISTATS 2010
    "glorot_uniform": _scaled("glorot", scaled_uniform_),
    "he_normal": _scaled("he", scaled_normal_),  # He et al., ICCV 2015
    "he_uniform": _scaled("he", scaled_uniform_),
    "lecun_normal": _scaled("lecun", scaled_normal_),  # LeCun et al., "Efficient BackProp", 1998
    "lecun_uniform": _scaled("lecun", scaled_uniform_),
    "orthogonal": lambda weight, fan, value, generator: nn.init.orthogonal_(
        weight, value, generator
    ),  # Saxe et al., ICLR 2014
    "zeros": lambda weight, fan, value, generator: nn.init.zeros_(weight),
    "normal": lambda weight, fan, value, generator: nn.init.normal_(weight, 0.0, value, generator),
}


def initialize_(
    weight: Tensor, initializer: str, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a layer's weight in place as an initialiser such as `he_normal` or `normal:0.05` says.

    weight: (out, in) or (out, in / groups, h, w). generator: where the randomness comes from; None
    is torch's global one. Returns the same tensor. Raises ValueError for an unknown initialiser.
    """
    parsed = parse_initializer(initializer)
    return INITIALIZERS[parsed.kind](weight, parsed.fan, parsed.value, generator)
