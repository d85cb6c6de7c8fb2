"""Batches that lie in several processes: gathered with their gradients, and normalised as one.

torch's own synchronised batch norm works on GPUs only; these work wherever processes can add up.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from transferkit import processes


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient's, which all of them share."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Return the sum, of the same shape."""
        return processes.sum_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return what every process's own tensor changes of all processes' losses."""
        return summed(gradient)


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; gradients flow back to each of them."""
    if processes.count() == 1:
        return tensor
    total: Tensor = Sum.apply(tensor)
    return total


def gathered(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes, (N, ...), in their order; n may differ.

    A loss that every process takes of all rows has the gradients of one process with the whole
    batch, once gradients are averaged.
    """
    if processes.count() == 1:
        return rows
    counts = processes.from_all(len(rows))
    before = sum(counts[: processes.rank()])
    after = sum(counts) - before - len(rows)
    padding = (0, 0) * (rows.ndim - 1) + (before, after)
    return summed(nn.functional.pad(rows, padding))


class Synchronized(nn.Module):
    """Mixed in before a batch norm: its statistics in training are those of all processes.

    Source: Peng et al., "MegDet: A Large Mini-Batch Object Detector", CVPR 2018, section 3.3.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise (N, C, ...); then, for timm's layers, what follows the norm in them."""
        if not self.training or processes.count() == 1:
            outputs: Tensor = super().forward(inputs)
            return outputs
        outputs = normalized(self, inputs)
        for name in ("drop", "act"):
            if name in self._modules:
                outputs = getattr(self, name)(outputs)
        return outputs


def normalized(norm: Any, inputs: Tensor) -> Tensor:
    """Bring (N, C, ...) to mean 0 and variance 1 over all processes' N, then scale and shift.

    norm: the batch norm, whose running statistics move as torch's do.
    """
    values = inputs.float()
    axes = [0, *range(2, values.ndim)]
    shape = (1, -1) + (1,) * (values.ndim - 2)
    count = values.new_tensor([values.numel() / values.shape[1]])
    sums = summed(torch.cat([values.sum(axes), count]))  # (C + 1,)
    number = sums[-1].detach()
    average = sums[:-1] / number  # (C,)
    centred = values - average.view(shape)
    variance = summed(centred.square().sum(axes)) / number  # (C,)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            tracked = float(norm.num_batches_tracked)
            part = 1 / tracked if norm.momentum is None else norm.momentum
            fair = variance * number / (number - 1)
            norm.running_mean.mul_(1 - part).add_(average, alpha=part)
            norm.running_var.mul_(1 - part).add_(fair, alpha=part)
    outputs = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        outputs = outputs * norm.weight.view(shape) + norm.bias.view(shape)
    return outputs.to(inputs.dtype)


@cache
def synchronized_kind(kind: type[nn.Module]) -> Any:
    """Return a batch norm's class with `Synchronized` mixed in."""
    return type(f"Synchronized{kind.__name__}", (Synchronized, kind), {})


def synchronize_(network: nn.Module) -> None:
    """Let a network's batch norms see all processes' batches as one; nothing with one process.

    Modules stay what and where they are, so that names, weights and hooks do.
    """
    if processes.count() == 1:
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, Synchronized | SyncBatchNorm):
            kind: Any = type(module)
            module.__class__ = synchronized_kind(kind)
