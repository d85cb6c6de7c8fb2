"""Clipping: gradients that are too large are made smaller before the step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

Parameters = Sequence[nn.Parameter]
SMALLEST_NORM = 1e-3
"""Weights of a smaller norm count as this large in adaptive clipping, as in the paper."""


def clip_by_value_(parameters: Parameters, limit: float) -> bool:
    """Cut every entry of the gradients to -limit..limit, which may turn their direction.

    limit: > 0. Returns whether any entry was cut.
    Source: Mikolov, "Statistical Language Models Based on Neural Networks", 2012.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
    clip_grad_value_(parameters, limit)
    return largest > limit


def clip_by_norm_(parameters: Parameters, limit: float) -> bool:
    """Scale all gradients together to an L2 norm of at most `limit`, keeping their direction.

    limit: > 0. Returns whether they were scaled.
    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training RNNs", ICML 2013.
    """
    return float(whole(clip_grad_norm_(parameters, limit))) > limit


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that lies in several processes as one that each of them has."""
    full = getattr(tensor, "full_tensor", None)  # of a DTensor, whose module is slow to import
    found: Tensor = tensor if full is None else full()
    return found


def clip_adaptively_(parameters: Parameters, limit: float) -> bool:
    """Scale each neuron's gradient to at most `limit` times the norm of its weights.

    limit: > 0. Returns whether any was scaled.
    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization",
    ICML 2021; timm's implementation.
    """
    import transferkit.timm_import  # noqa: F401  # isort: skip
    from timm.utils.agc import adaptive_clip_grad, unitwise_norm

    def exceeds(parameter: nn.Parameter, gradient: torch.Tensor) -> bool:
        most = unitwise_norm(parameter.detach()).clamp(min=SMALLEST_NORM) * limit
        return bool((unitwise_norm(gradient) > most).any())

    clipped = any(exceeds(p, p.grad) for p in parameters if p.grad is not None)
    adaptive_clip_grad(parameters, limit, eps=SMALLEST_NORM)
    return clipped


CLIPPINGS: dict[str, Callable[[Parameters, float], bool]] = {
    "value": clip_by_value_,
    "norm": clip_by_norm_,
    "adaptive": clip_adaptively_,
}
