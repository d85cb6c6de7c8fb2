"""Batch-norm statistics of a backbone: which layers have them, and how they are measured anew."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics (mean and variance of a channel)."""
    return isinstance(module, _BatchNorm) and module.track_running_stats


def recalibrate(
    model: nn.Module, batches: Iterable[Tensor], among: Sequence[nn.Module] | None = None
) -> Iterator[int]:
    """Replace the running statistics of a model's batch norms by those of new inputs.

    batches: (N, 3, H, W) each, as the model takes them; every batch weighs the same, so they should
    be of equal size, at least 2, and drawn at random. Yields the number of inputs done; the model
    ends in evaluation mode, its other tensors untouched. among: only these batch norms; None: all.
    Dropout and drop path are off meanwhile.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    UAI 2018, section 3.2, as `torch.optim.swa_utils.update_bn` does it; for another data set, Li et
    al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    norms = [n for n in norms if has_statistics(n) and (among is None or n in among)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    done = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the running statistics are the mean over all batches
            norm.training = True
        for batch in batches:
            with torch.no_grad():
                model(batch)
            done += len(batch)
            yield done
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
