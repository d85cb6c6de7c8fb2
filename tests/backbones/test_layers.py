import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.layers import ACTIVATIONS, INITIALIZERS, initialize_, make_activation
from transferkit.config.initializers import (
    SPELLING,
    misfit,
    paired_initializer,
    parse_initializer,
)
from transferkit.config.network import Activation
from transferkit.recipes.network_checks import SLOPED

X = torch.linspace(-6, 6, 241)
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772

# each written out, not taken from torch.nn
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "logistic": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "relu": lambda x: x.clamp_min(0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "selu": lambda x: SCALE * torch.where(x > 0, x, ALPHA * (x.exp() - 1)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "softplus": lambda x: torch.log1p(x.exp()),
    "hard_swish": lambda x: x * (x + 3).clamp(0, 6) / 6,
}
FUNCTIONAL = {
    **{"identity": lambda x: x, "logistic": torch.sigmoid, "tanh": torch.tanh},
    **{"hard_swish": functional.hardswish, "prelu": lambda x: functional.leaky_relu(x, 0.25)},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_equals_its_formula_and_torchs_function(name: str) -> None:
    module = make_activation(name)
    inputs = X.clone()
    found = module(inputs)
    torch.testing.assert_close(found, FORMULAS[name](X), atol=1e-6, rtol=1e-5)
    reference = FUNCTIONAL.get(name) or getattr(functional, name)
    assert torch.equal(found, reference(X))
    assert torch.equal(inputs, X)  # not in place


def test_every_activation_of_the_configuration_is_there() -> None:
    assert get_args(Activation) == tuple(ACTIVATIONS) == tuple(FORMULAS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_slope_acts_where_it_is_allowed(name: str) -> None:
    found = make_activation(name, 0.3)(X)
    if name in SLOPED:
        assert torch.equal(found, torch.where(X > 0, X, 0.3 * X))
    else:
        assert torch.equal(found, make_activation(name)(X))


def test_the_slope_of_prelu_is_learned() -> None:
    """d/da sum(prelu(x)) is the sum of the negative inputs."""
    module = make_activation("prelu")
    module(X).sum().backward()
    (slope,) = module.parameters()
    assert slope.grad is not None
    torch.testing.assert_close(slope.grad, X.clamp_max(0).sum().view(1))
    assert not list(make_activation("leaky_relu").parameters())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot_normal": lambda w: nn.init.xavier_normal_(w, generator=generator()),
    "glorot_uniform": lambda w: nn.init.xavier_uniform_(w, generator=generator()),
    "he_normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=generator()),
    "he_uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=generator()),
    "lecun_normal": lambda w: nn.init.kaiming_normal_(
        w, nonlinearity="linear", generator=generator()
    ),
    "lecun_uniform": lambda w: nn.init.kaiming_uniform_(
        w, nonlinearity="linear", generator=generator()
    ),
    "orthogonal": lambda w: nn.init.orthogonal_(w, generator=generator()),
    "zeros": nn.init.zeros_,
    "normal:0.3": lambda w: nn.init.normal_(w, 0, 0.3, generator=generator()),
    "he_normal:out": lambda w: nn.init.kaiming_normal_(
        w, mode="fan_out", nonlinearity="relu", generator=generator()
    ),
    "lecun_uniform:fan_out": lambda w: nn.init.kaiming_uniform_(
        w, mode="fan_out", nonlinearity="linear", generator=generator()
    ),
    "orthogonal:1.5": lambda w: nn.init.orthogonal_(w, 1.5, generator=generator()),
}


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (12, 8, 3, 3)])
@pytest.mark.parametrize("name", TORCHS)
def test_an_initialiser_equals_torchs(name: str, shape: tuple[int, ...]) -> None:
    found = initialize_(torch.empty(shape), name, generator())
    torch.testing.assert_close(found, TORCHS[name](torch.empty(shape)))


def test_every_initialiser_is_tested_and_told() -> None:
    assert {name.partition(":")[0] for name in TORCHS} == set(INITIALIZERS)
    assert all(kind.partition("_")[0] in SPELLING for kind in INITIALIZERS)


THEORY = {
    **{"glorot_normal": 2 / 1600, "glorot_normal:in": 1 / 1000, "glorot_uniform:out": 1 / 600},
    **{"glorot_uniform": 2 / 1600, "he_normal": 2 / 1000, "he_uniform:avg": 4 / 1600},
    **{"he_uniform": 2 / 1000, "lecun_normal": 1 / 1000, "lecun_uniform:out": 1 / 600},
    **{"lecun_uniform": 1 / 1000, "orthogonal": 1 / 1000, "normal:0.05": 0.0025, "zeros": 0},
    **{"orthogonal:2": 4 / 1000, "he_normal:out": 2 / 600, "lecun_normal:avg": 2 / 1600},
}


@pytest.mark.parametrize("name", THEORY)
def test_the_variance_on_a_wide_layer_is_within_two_percent_of_theory(name: str) -> None:
    weight = initialize_(torch.empty(600, 1000), name, generator())
    assert weight.var().item() == pytest.approx(THEORY[name], rel=0.02)
    assert abs(weight.mean().item()) <= 0.02 * math.sqrt(THEORY[name])
    assert parse_initializer(name).variance(1000, 600) == pytest.approx(THEORY[name])


def test_the_variance_of_a_convolution_counts_its_kernel() -> None:
    weight = initialize_(torch.empty(256, 128, 3, 3), "he_normal", generator())
    assert weight.var().item() == pytest.approx(2 / (128 * 9), rel=0.02)


def test_uniform_stays_within_its_limits() -> None:
    weight = initialize_(torch.empty(600, 1000), "he_uniform", generator())
    limit = math.sqrt(6 / 1000)
    assert limit * 0.999 < weight.abs().max().item() <= limit


@pytest.mark.parametrize(
    "text",
    [
        *("", "he", "he_norml", "he_normal:", "he_normal:all", "normal", "normal:", "normal:0"),
        *("normal:-1", "normal:nan", "normal:inf", "normal:1e999", "orthogonal:0"),
        *("orthogonal:x", "zeros:1", "ones", "normal:1:2", "glorot", "orthogonal:"),
    ],
)
def test_what_is_no_initialiser_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not known|after the colon|standard deviation"):
        parse_initializer(text)


def test_pairing_by_activation() -> None:
    glorot = ("identity", "tanh", "logistic", "softmax")
    expected = {name: "he_normal" for name in ACTIVATIONS if name not in glorot}
    expected |= {"selu": "lecun_normal"} | dict.fromkeys(glorot, "glorot_normal")
    assert {n: paired_initializer(n) for n in (*ACTIVATIONS, "softmax")} == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_paired_initialiser_fits_and_others_do_not(activation: str) -> None:
    assert misfit(paired_initializer(activation), activation, 100, 50) == ""
    bad = "glorot_normal" if activation not in ("identity", "tanh", "logistic") else "he_uniform"
    assert "variance" in misfit(bad, activation, 100, 100)
    assert "stay alike" in misfit("zeros", activation, 100, 100)
    assert "times" in misfit("normal:1.0", activation, 100, 100)
    fitting = math.sqrt(parse_initializer(paired_initializer(activation)).variance(100, 100))
    assert misfit(f"normal:{fitting}", activation, 100, 100) == ""


def test_orthogonal_fits_by_its_gain() -> None:
    assert misfit("orthogonal", "tanh", 100, 10) == ""
    assert misfit("orthogonal", "relu", 100, 100) != ""
    assert misfit("orthogonal:1.414", "relu", 100, 100) == ""


def deep(activation: str, initializer: str, rate: float, depth: int = 50) -> list[Tensor]:
    """Outputs of every layer for standard normal inputs; rate: of alpha dropout, switched on."""
    source = generator()
    torch.manual_seed(1)
    x = torch.randn(500, 300, generator=source)
    outputs = []
    for _ in range(depth):
        linear = nn.Linear(300, 300, bias=False)
        initialize_(linear.weight, initializer, source)
        x = make_activation(activation)(linear(x)).detach()
        x = nn.AlphaDropout(rate).train()(x) if rate else x
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_selu_with_lecun_keeps_mean_and_variance_through_fifty_layers(rate: float) -> None:
    for output in deep("selu", paired_initializer("selu"), rate):
        assert abs(output.mean().item()) <= 0.1
        assert abs(output.var().item() - 1) <= 0.15


def test_naive_start_with_tanh_does_not() -> None:
    """Variance 1/(3 fan_in), torch's own default for linear layers: the signal fades."""
    naive = f"normal:{math.sqrt(1 / 300 / 3)}"
    variances = [output.var().item() for output in deep("tanh", naive, 0.0)]
    assert variances[-1] < 1e-6
    assert all(later < earlier for earlier, later in pairwise(variances))
