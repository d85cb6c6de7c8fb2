"""Small networks of our own that start from random weights, in the manner of timm's models.

Each has `blocks`, one module per hidden layer, `forward_features` and `forward_head`, so that
chains, stages, caches and run folders treat it as any other backbone.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.layers import initialize_, make_activation, uninitialized
from transferkit.config.initializers import misfit, paired_initializer
from transferkit.data.preprocessing import Preprocessing

SIZES_PX = {"mlp": 32, "cnn": 64}
HALVINGS = 4
"""How often a cnn halves its maps and doubles its channels, if it is that deep."""


@dataclass(frozen=True)
class ScratchDesign:
    """How a network from scratch is built.

    depth: hidden layers, >= 1. width: units of each layer of an mlp; channels of a cnn's first
    layer. slope: of leaky_relu and prelu. initializer: see `parse_initializer`; None takes what
    suits the activation. batchnorm: any of "first" (of the input) and "before" or "after" every
    activation. dropout: after every layer, 0..1. dropout_kind: "plain", "alpha" or "spatial".
    skip: see `Residual`.
    """

    depth: int
    width: int
    activation: str = "relu"
    slope: float | None = None
    initializer: str | None = None
    batchnorm: tuple[str, ...] = ()
    dropout: float = 0.0
    dropout_kind: str = "plain"
    skip: bool = False

    @property
    def start(self) -> str:
        """The initialiser of the layers."""
        return self.initializer or paired_initializer(self.activation)


DEFAULTS = {"mlp": ScratchDesign(3, 128), "cnn": ScratchDesign(6, 32)}
DROPOUTS: dict[str, Callable[[float], nn.Module]] = {
    "plain": nn.Dropout,  # Srivastava et al., JMLR 2014
    "alpha": nn.AlphaDropout,  # Klambauer et al., NeurIPS 2017: keeps mean and variance of SELU
    "spatial": nn.Dropout2d,  # Tompson et al., CVPR 2015: whole maps
}


class Residual(nn.Sequential):
    """A hidden layer that adds its input to its result.

    Where it has half the maps' size or more channels, every second pixel of the input is taken, and
    the channels that it lacks are zeros, so that the connection has no weights.
    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, shortcut A.
    """

    def forward(self, below: Tensor) -> Tensor:
        """Run the layer: (N, D) -> (N, D), or maps (N, C, H, W)."""
        result: Tensor = super().forward(below)
        if below.ndim == 4:
            below = below[:, :, ::2, ::2] if below.shape[2:] != result.shape[2:] else below
            below = functional.pad(below, (0, 0, 0, 0, 0, result.shape[1] - below.shape[1]))
        return below + result


def make_block(layer: nn.Linear | nn.Conv2d, design: ScratchDesign, skips: bool) -> nn.Sequential:
    """Build one hidden layer: linear, [batch norm], activation, [batch norm], [dropout]."""
    maps = isinstance(layer, nn.Conv2d)
    width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    parts: dict[str, nn.Module] = {"linear": layer}
    if "before" in design.batchnorm:
        parts["norm"] = nn.BatchNorm2d(width) if maps else nn.BatchNorm1d(width)
    parts["act"] = make_activation(design.activation, design.slope)
    if "after" in design.batchnorm:
        parts["norm"] = nn.BatchNorm2d(width) if maps else nn.BatchNorm1d(width)
    if design.dropout:
        parts["drop"] = DROPOUTS[design.dropout_kind](design.dropout)
    return (Residual if skips else nn.Sequential)(OrderedDict(parts))


class Scratch(nn.Module):
    """A stack of hidden layers: (N, 3, H, W) -> features (N, D)."""

    def __init__(
        self, input_norm: nn.Module, flatten: bool, blocks: list[nn.Sequential], features: int
    ) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.flatten = nn.Flatten() if flatten else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.global_pool: nn.Module = nn.Identity()
        self.maps = not flatten
        self.num_features = features
        self.reset_classifier(0, "avg")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Choose the pooling of the last maps, as timm's models do; there is no classifier here.

        Raises AssertionError for a pooling that timm does not know, or where there are no maps.
        """
        if not self.maps:
            assert global_pool in (None, "avg"), "it has no feature maps to pool"
        elif global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last layer's output: (N, D), or maps (N, C, H, W)."""
        return self.blocks(self.flatten(self.input_norm(images)))

    def forward_head(self, features: Tensor) -> Tensor:
        """Pool the last layer's output to (N, D)."""
        return self.global_pool(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D) of normalised images (N, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


def make_mlp(design: ScratchDesign, side_px: int) -> Scratch:
    """Build a multilayer perceptron on the flattened pixels: D = width."""
    widths = [3 * side_px**2] + [design.width] * design.depth
    bias = "before" not in design.batchnorm
    layers = [uninitialized(nn.Linear, a, b, bias=bias) for a, b in pairwise(widths)]
    return Scratch(
        nn.BatchNorm2d(3) if "first" in design.batchnorm else nn.Identity(),
        True,
        [make_block(layer, design, design.skip and i > 0) for i, layer in enumerate(layers)],
        design.width,
    )


def make_cnn(design: ScratchDesign, side_px: int) -> Scratch:
    """Build 3 x 3 convolutions; evenly spaced ones halve the maps and double the channels.

    D is the last layer's channels: width times 2 for each halving, of which there are
    `HALVINGS`, but no more than hidden layers, and none below maps of 2 x 2.
    """
    halvings = min(HALVINGS, design.depth, int(math.log2(side_px)) - 1)
    blocks, channels = [], 3
    for i in range(design.depth):
        done, due = i * halvings // design.depth, (i + 1) * halvings // design.depth
        width = design.width * 2**done
        layer = uninitialized(
            nn.Conv2d, channels, width, 3, 1 + due - done, 1, bias="before" not in design.batchnorm
        )
        blocks.append(make_block(layer, design, design.skip and i > 0))
        channels = width
    norm = nn.BatchNorm2d(3) if "first" in design.batchnorm else nn.Identity()
    return Scratch(norm, False, blocks, channels)


NETWORKS: dict[str, Callable[[ScratchDesign, int], Scratch]] = {"mlp": make_mlp, "cnn": make_cnn}


def make_scratch(name: str, design: ScratchDesign, side_px: int, seed: int) -> Scratch:
    """Build the network `name` of `NETWORKS` for pictures of side_px, its weights from `seed`.

    Biases start at 0; a layer with batch norm right after it has none, for that would undo it.
    Weights beside skip connections are divided by the root of their number, so that the variance of
    the sum grows by a factor of about e, whatever the depth.
    Source: Hayou et al., "Stable ResNet", AISTATS 2021.
    """
    generator = torch.Generator().manual_seed(seed + 2**32)  # other numbers than the head's
    model = NETWORKS[name](design, side_px)
    for block in model.blocks:
        layer: Any = block.get_submodule("linear")
        initialize_(layer.weight, design.start, generator)
        if isinstance(block, Residual):
            layer.weight.data /= math.sqrt(design.depth - 1)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def scratch_misfit(model: Scratch, design: ScratchDesign) -> str:
    """Return why the design's initialiser does not go with its activation, or ""."""
    width = model.num_features
    fan = width if not model.maps else 9 * width
    return misfit(design.start, design.activation, fan, fan)


def scratch_preprocessing(side_px: int) -> Preprocessing:
    """Return how pictures become the input: the whole shorter side, values to -1..1."""
    half = (0.5, 0.5, 0.5)
    return Preprocessing(side_px, side_px, 1.0, "center", "bicubic", half, half)
