"""Averages of the weights along the way, which often generalise better than the last ones."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from transferkit.training.stages import PlannedStage


def ema_decay(step: int, decay: float) -> float:
    """Return the decay of update number `step`, from 1: it rises to `decay` from small values.

    min(decay, (1 + step) / (10 + step)): an average of a few steps does not remember where it
    began, and one of many reaches back about a ninth of them, at most 1 / (1 - decay) steps.
    Source: TensorFlow, `tf.train.ExponentialMovingAverage`, `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))


@dataclass
class Average:
    """An average of what one stage trains, of parameters and batch-norm statistics alike.

    current: name -> the model's own tensor. tensors: name -> its average. sparse: names, see
    `keep_zeros_`. count: updates so far; `counted` is its name in checkpoints.
    """

    current: Mapping[str, Tensor]
    tensors: dict[str, Tensor]
    sparse: Collection[str] = ()
    count: int = 0
    counted: ClassVar[str]

    @property
    def started(self) -> bool:
        """Whether the average may be evaluated."""
        return True

    def update(self) -> None:
        """Take in the weights after a step."""

    def end_epoch(self, epoch: int) -> None:
        """Take in the weights after an epoch, from 0."""

    def keep_zeros_(self) -> None:
        """Set to zero what L1 has at zero now: else no weight of a mean stays zero."""
        for name in self.sparse:
            self.tensors[name].mul_(self.current[name] != 0)

    def restart(self) -> None:
        """Begin again at the current tensors."""
        self.count = 0
        copy_(self.tensors, self.current)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what a resumed run needs."""
        tensors = {n: t.detach().cpu().clone() for n, t in self.tensors.items()}
        return {self.counted: self.count, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.count = state[self.counted]
        copy_(self.tensors, state["tensors"])


@dataclass
class MovingAverage(Average):
    """An exponential moving average over the steps.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992;
    Morales-Brotons et al., "Exponential Moving Average of Weights in Deep Learning", TMLR 2024.
    """

    decay: float = 0.0
    counted = "steps"

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current tensors; integers (batches tracked) are copied."""
        self.count += 1
        share = 1 - ema_decay(self.count, self.decay)
        for name, average in self.tensors.items():
            if average.is_floating_point():
                average.lerp_(self.current[name], share)
            else:
                average.copy_(self.current[name])
        self.keep_zeros_()


@dataclass
class EpochAverage(Average):
    """The mean over the ends of a stage's last epochs. first: the first one that counts, from 0.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    UAI 2018, algorithm 1, once per epoch; torch.optim.swa_utils.
    """

    first: int = 0
    counted = "epochs"

    @property
    def started(self) -> bool:
        """Whether any epoch is in the mean."""
        return self.count > 0

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Take in the weights after an epoch, from 0; the first ones and integers are copied."""
        if epoch < self.first:
            return
        real = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        if self.started:
            averages = [self.tensors[name] for name in real]
            get_swa_multi_avg_fn()(averages, [self.current[name] for name in real], self.count)
        copied = self.tensors.keys() - set(real) if self.started else self.tensors.keys()
        copy_(self.tensors, {name: self.current[name] for name in copied})
        self.keep_zeros_()
        self.count += 1


def first_averaged(epochs: int, share: float) -> int:
    """Return the first epoch, from 0, of the last `share` of a stage; at least one epoch counts."""
    return epochs - max(1, round(share * epochs))


def make_average(
    model: nn.Module, column_of: Callable[[str], int], stage: PlannedStage, ema: float, swa: float
) -> Average | None:
    """Begin a stage's average at its weights as they are.

    ema: decay of a moving average; swa: share of the epochs in a mean; None where both are 0. The
    tensors stay the model's own as long as it is changed in place, as optimisers do.
    """
    if not (ema or swa):
        return None
    state = model.state_dict()
    tensors = {name: t for name, t in state.items() if stage.multipliers[column_of(name)] > 0}
    copies = {name: t.clone() for name, t in tensors.items()}
    if ema:
        return MovingAverage(tensors, copies, decay=ema)
    return EpochAverage(tensors, copies, first=first_averaged(stage.epochs, swa))


@contextmanager
def averaged(average: Average | None) -> Iterator[None]:
    """Put the average into its model for as long as the context lasts, then the weights back."""
    if average is None or not average.started:
        yield
        return
    before = {name: tensor.clone() for name, tensor in average.current.items()}
    copy_(average.current, average.tensors)
    try:
        yield
    finally:
        copy_(average.current, before)


@torch.no_grad()
def copy_(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into the tensors of the same names, in place."""
    for name, value in values.items():
        tensors[name].copy_(value)
