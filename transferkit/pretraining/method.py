"""The interface of a pretraining method: networks, and how they learn from a batch of pictures.

A method is a function `(encoder, options, seed) -> Method` and a row in
`transferkit.config.methods.METHODS`. The loop does the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

NETWORK = "network"
"""The only player of a method with a single loss."""


@dataclass(frozen=True)
class Batch:
    """The input of a training step.

    views: V tensors (N, 3, H, W) of the same N pictures, values 0..1; sizes may differ between
    views. labels: (N,) int64; all 0 for a data set without labels. progress: of the phase, 0..1.
    held_out: evaluate only, learn nothing.

    Methods draw random numbers from torch's global generator, which the loop seeds every epoch.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    progress: float
    held_out: bool = False


@dataclass(frozen=True)
class Objective:
    """A loss [] for one player to minimise. figures: further values to report, by name."""

    loss: Tensor
    player: str = NETWORK
    figures: Mapping[str, float] = field(default_factory=dict)


Learn = Callable[[Batch], Iterator[Objective]]
"""Yields the players' objectives in turn; after each, its player's optimiser has made a step."""


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own players; most methods have one.

    players: name -> modules or parameters that share an optimiser. share: of all epochs, relative
    to the other phases. begin: called with pictures (N, 3, H, W), values 0..1, before the first
    step. after_step: called with the progress 0..1 after every step.
    """

    name: str
    players: Mapping[str, nn.Module | Sequence[nn.Parameter]]
    learn: Learn
    share: float = 1.0
    begin: Callable[[Tensor], None] | None = None
    after_step: Callable[[float], None] | None = None


@dataclass(frozen=True)
class Method:
    """A pretraining method, built around an encoder.

    networks: everything that a checkpoint must hold, including the encoder; state other than
    parameters (momentum encoders, queues, persistent chains) lies in buffers.
    phases: in order. lr, weight_decay, hyper: the method's defaults; of `hyper`, those that the
    optimiser takes.
    show: pictures (N, 3, H, W), N <= 8, values 0..1 -> name of a plot -> rows of pictures to draw,
    (R, C, 3, H, W), values 0..1.
    figures: (training pictures, held-out pictures), (N, 3, H, W) each, -> figures of an epoch.
    warnings: rows of metrics.csv so far -> warnings for the user.
    arrange: (positions (N,) in random order, their labels (N,)) -> the training order.
    finish: called after the last epoch, before the backbone is saved.
    """

    networks: nn.Module
    phases: tuple[Phase, ...]
    lr: float = 1e-3
    weight_decay: float = 1e-4
    hyper: Mapping[str, float] = field(default_factory=dict)
    show: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    figures: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None
    warnings: Callable[[Sequence[Mapping[str, float]]], list[str]] | None = None
    arrange: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]] | None = None
    finish: Callable[[], None] | None = None
