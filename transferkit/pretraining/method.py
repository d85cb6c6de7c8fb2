"""What a pretraining method is: networks, and how they learn from a batch of pictures.

A method is a function `make(encoder, options, seed) -> Method` and a row in
`transferkit.pretraining.methods.METHODS`. The loop does all the rest: views, optimisers,
schedules, clipping, checkpoints, probes and plots.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder

NETWORK = "network"
"""The only player of a method whose networks all step down the same loss."""


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    views: V tensors (N, 3, H, W) of the same N pictures, values 0..1; sizes may differ between
    views. labels: (N,) int64, what the data set says of each picture; all 0 where it says nothing.
    progress: of the phase, 0..1. held_out: the figures are only measured, nothing is learned.

    Whatever a method draws at random comes from torch's global generator, which the loop seeds in
    every epoch.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    progress: float
    held_out: bool = False


@dataclass(frozen=True)
class Move:
    """One player's turn: a loss [] to step down. figures: what else to show of it, by name."""

    loss: Tensor
    player: str = NETWORK
    figures: Mapping[str, float] = field(default_factory=dict)


Learn = Callable[[Batch], Iterator[Move]]
"""Yields the players' moves in turn; after each, that player's parameters have made their step."""


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own players; most methods have one.

    players: name -> the modules or parameters that step down that player's losses. share: of all
    epochs, relative to the other phases. begin: called with pictures (N, 3, H, W) of 0..1 before
    the first step. stepped: called with the progress 0..1 after every step.
    """

    name: str
    players: Mapping[str, nn.Module | Sequence[nn.Parameter]]
    learn: Learn
    share: float = 1.0
    begin: Callable[[Tensor], None] | None = None
    stepped: Callable[[float], None] | None = None


@dataclass(frozen=True)
class Method:
    """A method at work.

    networks: everything that a checkpoint must hold, the encoder among it; state that is no
    parameter (momentum encoders, queues, persistent chains) lies in buffers.
    phases: in order. lr, weight_decay, hyper (of the optimiser, where it has them): unless the user
    names others.
    show: pictures (N, 3, H, W), N <= 8, values 0..1 -> name of a plot -> rows of pictures to draw,
    (R, C, 3, H, W), values 0..1.
    measure: (training pictures, pictures kept aside), (N, 3, H, W) each, -> figures of an epoch.
    warnings: of the rows of metrics.csv so far -> what a person should know.
    arrange: (positions (N,) in random order, their labels (N,)) -> the order to learn in.
    finish: called once all is learned, before the backbone is written.
    """

    networks: nn.Module
    phases: tuple[Phase, ...]
    lr: float = 1e-3
    weight_decay: float = 1e-4
    hyper: Mapping[str, float] = field(default_factory=dict)
    show: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    measure: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None
    warnings: Callable[[Sequence[Mapping[str, float]]], list[str]] | None = None
    arrange: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]] | None = None
    finish: Callable[[], None] | None = None


@dataclass(frozen=True)
class MethodKind:
    """A row of the table of methods.

    make: builds the method around an encoder, its new networks seeded by the third argument.
    views: what each picture of a batch is shown as, see `transferkit.pretraining.views.VIEWS`.
    views_of: returns the views instead, where they depend on the encoder or on options.
    backbone: the usual one. summary: what is learned, in a few words.
    reads_labels: it learns the classes of a labelled set; `make` is also given their number.
    drops_last: a smaller last batch is left out. one_process: it cannot be shared out.
    """

    make: Callable[..., Method]
    views: tuple[str, ...]
    summary: str
    backbone: str = "resnet18"
    reads_labels: bool = False
    drops_last: bool = True
    one_process: bool = False
    views_of: Callable[[Encoder, Pretraining], tuple[str, ...]] | None = None
