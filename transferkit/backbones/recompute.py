"""Activation checkpointing: blocks computed a second time instead of keeping what they computed."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transferkit.backbones.norm_statistics import has_statistics


class Recomputed(nn.Module):
    """Mixed into a block's class by `recompute`; the block's parameters keep their names."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block; in training only its inputs are kept for the backward pass."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), unmoved_statistics(self)

        return checkpoint(
            super().forward, *args, use_reentrant=False, context_fn=contexts, **kwargs
        )


@contextmanager
def unmoved_statistics(block: nn.Module) -> Iterator[None]:
    """Run a block in training without moving its batch norms' statistics a second time."""
    norms: list[Any] = [m for m in block.modules() if has_statistics(m)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def recompute(model: nn.Module, paths: Iterable[str]) -> None:
    """Have the modules at dotted paths recompute their activations in the backward pass.

    Weights, losses and statistics stay the same numbers; a step takes about a third longer.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    for path in paths:
        module = model.get_submodule(path)
        kind = type(module)
        if not issubclass(kind, Recomputed):
            module.__class__ = type(kind.__name__, (Recomputed, kind), {})
