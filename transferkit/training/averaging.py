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
class MovingAverage:
    """An exponential moving average of what one stage trains.

    current: name -> the model's own tensor, of parameters and batch-norm statistics alike.
    tensors: name -> its average. steps: updates so far. sparse: see `keep_zeros_`.
    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992;
    Morales-Brotons et al., "Exponential Moving Average of Weights in Deep Learning", TMLR 2024.
    """

    decay: float
    current: Mapping[str, Tensor]
    tensors: dict[str, Tensor]
    steps: int = 0
    sparse: Collection[str] = ()
    started: ClassVar[bool] = True

    def end_epoch(self, epoch: int) -> None:
        """Do nothing: steps count, not epochs."""

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current tensors; whole numbers (batches tracked) are copied."""
        self.steps += 1
        share = 1 - ema_decay(self.steps, self.decay)
        for name, average in self.tensors.items():
            if average.is_floating_point():
                average.lerp_(self.current[name], share)
            else:
                average.copy_(self.current[name])
        keep_zeros_(self)

    def restart(self) -> None:
        """Begin again at the current tensors."""
        self.steps = 0
        copy_(self.tensors, self.current)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what a resumed run needs."""
        tensors = {n: t.detach().cpu().clone() for n, t in self.tensors.items()}
        return {"steps": self.steps, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps = state["steps"]
        copy_(self.tensors, state["tensors"])


@dataclass
class EpochAverage:
    """The equal mean of what one stage trains, over the ends of its last epochs.

    first: the first epoch that counts, from 0. epochs: how many are in the mean so far. sparse: see
    `keep_zeros_`.
    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    UAI 2018, algorithm 1, once per epoch; torch.optim.swa_utils.
    """

    first: int
    current: Mapping[str, Tensor]
    tensors: dict[str, Tensor]
    epochs: int = 0
    sparse: Collection[str] = ()

    @property
    def started(self) -> bool:
        """Whether any epoch is in the mean."""
        return self.epochs > 0

    def update(self) -> None:
        """Do nothing: epochs count, not steps."""

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Take in the weights after an epoch, counted from 0; the first ones are copied."""
        if epoch < self.first:
            return
        real = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        if self.started:
            averages = [self.tensors[name] for name in real]
            current = [self.current[name] for name in real]
            get_swa_multi_avg_fn()(averages, current, self.epochs)
        copied = self.tensors.keys() - set(real) if self.started else self.tensors.keys()
        copy_(self.tensors, {name: self.current[name] for name in copied})
        keep_zeros_(self)
        self.epochs += 1

    def restart(self) -> None:
        """Begin again with an empty mean."""
        self.epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what a resumed run needs."""
        tensors = {n: t.detach().cpu().clone() for n, t in self.tensors.items()}
        return {"epochs": self.epochs, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.epochs = state["epochs"]
        copy_(self.tensors, state["tensors"])


Average = MovingAverage | EpochAverage


def keep_zeros_(average: Average) -> None:
    """Bring what L1 has at zero now to zero in the average; of a mean no weight stays zero else."""
    for name in average.sparse:
        average.tensors[name].mul_(average.current[name] != 0)


def first_averaged(epochs: int, share: float) -> int:
    """Return the first epoch, from 0, of the last `share` of a stage; at least one epoch counts."""
    return epochs - max(1, round(share * epochs))


def epoch_average(
    model: nn.Module, column_of: Callable[[str], int], stage: PlannedStage, share: float
) -> EpochAverage | None:
    """Prepare the mean of a stage's last epochs; None when `share` is 0."""
    if share == 0:
        return None
    tensors = stage_tensors(model, column_of, stage)
    copies = {name: t.clone() for name, t in tensors.items()}
    return EpochAverage(first_averaged(stage.epochs, share), tensors, copies)


def stage_tensors(
    model: nn.Module, column_of: Callable[[str], int], stage: PlannedStage
) -> dict[str, Tensor]:
    """Return the parameters and statistics that a stage may change, by name; they are not copies.

    They stay the model's own as long as it is changed in place, as optimisers do.
    """
    tensors = model.state_dict()
    return {name: t for name, t in tensors.items() if stage.multipliers[column_of(name)] > 0}


def moving_average(
    model: nn.Module, column_of: Callable[[str], int], stage: PlannedStage, decay: float
) -> MovingAverage | None:
    """Begin a stage's average at its weights as they are; None when `decay` is 0."""
    if decay == 0:
        return None
    tensors = stage_tensors(model, column_of, stage)
    return MovingAverage(decay, tensors, {name: t.clone() for name, t in tensors.items()})


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
