from typing import Any

import pytest
import torch
from torch import nn

from transferkit.training.gradients import CLIPPINGS


def with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 3), (4,), (2, 4))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


def flat(parameters: list[nn.Parameter]) -> Any:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def cosine(a: Any, b: Any) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=0))


def test_by_norm_keeps_the_direction_by_value_does_not() -> None:
    before = flat(with_gradients())
    by_norm, by_value = with_gradients(), with_gradients()
    assert CLIPPINGS["norm"](by_norm, 0.5)
    assert float(flat(by_norm).norm()) == pytest.approx(0.5, rel=1e-5)
    assert cosine(flat(by_norm), before) == pytest.approx(1, abs=1e-6)
    assert CLIPPINGS["value"](by_value, 0.5)
    assert torch.equal(flat(by_value), before.clamp(-0.5, 0.5))
    assert cosine(flat(by_value), before) < 0.99


def test_adaptive_equals_timm() -> None:
    ours, theirs = with_gradients(), with_gradients()
    assert CLIPPINGS["adaptive"](ours, 0.1)
    import timm  # after the package: see its torchvision_ops

    timm.utils.agc.adaptive_clip_grad(theirs, 0.1)
    assert torch.equal(flat(ours), flat(theirs))
    ratio = ours[0].grad.norm(dim=1) / ours[0].detach().norm(dim=1)  # type: ignore[union-attr]
    assert float(ratio.max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("name", CLIPPINGS)
def test_small_gradients_are_left_alone_and_not_counted(name: str) -> None:
    parameters = with_gradients(1e-6)
    parameters.append(nn.Parameter(torch.ones(3)))  # frozen: it has no gradient
    before = flat(parameters).clone()
    assert not CLIPPINGS[name](parameters, 0.5)
    assert torch.equal(flat(parameters), before)
