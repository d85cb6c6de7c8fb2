"""Options of the network: the backbone, networks from scratch, and the new layers on top."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from transferkit.config.option import Option, Section

Activation = Literal[
    "identity",
    "logistic",
    "tanh",
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
    "hard_swish",
]
FROM_SCRATCH = ("mlp", "cnn")
"""Backbones of our own that start from random weights."""
AUTO = "auto"
"""In the place of a backbone's name: the smallest one that leave-one-out finds good enough."""


@dataclass(frozen=True)
class BackboneOptions(Section):
    """The network under the new head: pretrained, or one of `FROM_SCRATCH`."""

    name: Annotated[
        str,
        Option("--backbone", "A timm model (`transferkit models`), mlp, cnn; auto.", usual=True),
    ] = "tf_efficientnet_lite0"
    pretrained: Annotated[
        bool, Option("--pretrained/--no-pretrained", "Start from pretrained weights.")
    ] = True
    weights: Annotated[
        Path | None, Option("--weights", "Weights file: .safetensors or a PyTorch state dict.")
    ] = None
    from_run: Annotated[
        Path | None,
        Option("--from", "Start from the backbone of another run, e.g. of pretrain.", usual=True),
    ] = None
    image_size: Annotated[
        Annotated[int, Ge(16), Le(2048)] | Literal["auto", "backbone"],
        Option("--image-size", "Input size in pixels; auto: a larger one if it pays.", usual=True),
    ] = "auto"
    crop: Annotated[
        Literal["auto", "backbone", "center", "squash", "pad"],
        Option("--crop", "Centre, whole picture squashed or padded; auto: judged.", usual=True),
    ] = "auto"
    crop_share: Annotated[
        float | None,
        Ge(0.5),
        Le(1),
        Option("--crop-share", "Share of the shorter side in a centre crop.", "the backbone's"),
    ] = None
    drop_path: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--drop-path", "Stochastic depth (drop path) rate of unfrozen blocks."),
    ] = 0.0
    depth: Annotated[
        int | None,
        Ge(1),
        Le(200),
        Option("--backbone-depth", "mlp, cnn: number of hidden layers.", "mlp 3, cnn 6"),
    ] = None
    width: Annotated[
        int | None,
        Ge(1),
        Le(8192),
        Option("--backbone-width", "mlp: units per layer; cnn: first channels.", "mlp 128, cnn 32"),
    ] = None
    activation: Annotated[
        Activation | None, Option("--activation", "mlp, cnn: activation function.", "relu")
    ] = None
    slope: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--slope", "Slope of leaky_relu, initial slope of prelu.", "0.01; prelu 0.25"),
    ] = None
    initializer: Annotated[
        str | None,
        Option("--initializer", "mlp, cnn: weights, e.g. he_normal, normal:0.1.", "by activation"),
    ] = None
    batchnorm: Annotated[
        tuple[Literal["first", "before", "after"], ...],
        Option("--backbone-batchnorm", "mlp, cnn: on the input; before or after activations."),
    ] = ()
    dropout: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--backbone-dropout", "mlp, cnn: rate after each hidden layer.", "0"),
    ] = None
    dropout_kind: Annotated[
        Literal["plain", "alpha", "spatial"],
        Option("--backbone-dropout-kind", "mlp, cnn: alpha suits SELU, spatial suits cnn."),
    ] = "plain"
    skip: Annotated[
        bool,
        Option(
            "--backbone-skip/--no-backbone-skip", "mlp, cnn: every layer adds its input (ResNet)."
        ),
    ] = False
    pooling: Annotated[
        Literal["avg", "max", "avgmax", "catavgmax", "token"] | None,
        Option("--pooling", "Global pooling of the last feature maps or tokens.", "its own"),
    ] = None
    drop_top_blocks: Annotated[
        int,
        Ge(0),
        Option("--drop-top-blocks", "Remove this many block groups from the top of the backbone."),
    ] = 0
    reuse_blocks: Annotated[
        int | None,
        Ge(1),
        Option("--reuse-blocks", "Reinitialise all but this many lowest block groups.", "all"),
    ] = None
    replace_activations: Annotated[
        Activation | None,
        Option("--replace-activations", "Activation for all blocks of a timm model."),
    ] = None

    @property
    def frames(self) -> bool:
        """Whether pictures are framed otherwise than the backbone's own way."""
        return self.crop not in ("auto", "backbone") or self.crop_share is not None

    @property
    def side_px(self) -> int | None:
        """The input size that was asked for; None for the backbone's own."""
        return self.image_size if isinstance(self.image_size, int) else None

    @property
    def from_scratch(self) -> bool:
        """Whether this is a network of our own, not one of timm's."""
        return self.name in FROM_SCRATCH

    @property
    def starts_random(self) -> bool:
        """Whether the network starts from random weights."""
        return not self.pretrained or (self.from_scratch and self.weights is None)

    @property
    def has_random_blocks(self) -> bool:
        """Whether any block starts from random weights, and has to train from the first stage."""
        return self.starts_random or self.reuse_blocks is not None


@dataclass(frozen=True)
class HeadOptions(Section):
    """The new layers on top of the backbone."""

    layers: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Option("--head-layers", "Widths of hidden layers before the classifier, e.g. 256,64."),
    ] = ()
    activation: Annotated[
        Activation, Option("--head-activation", "Activation function of the head's hidden layers.")
    ] = "relu"
    slope: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option(
            "--head-slope", "Head: slope of leaky_relu, initial slope of prelu.", "0.01; prelu 0.25"
        ),
    ] = None
    initializer: Annotated[
        str | None,
        Option("--head-initializer", "Initialiser of the head's hidden layers.", "by activation"),
    ] = None
    classifier_initializer: Annotated[
        str | None,
        Option(
            "--classifier-initializer",
            "Initialiser of the classifier.",
            "zeros; mlp, cnn: glorot_normal",
        ),
    ] = None
    batchnorm: Annotated[
        tuple[Literal["first", "before", "after"], ...],
        Option("--head-batchnorm", "Batch norm on the features; before or after activations."),
    ] = ()
    dropout: Annotated[
        tuple[Annotated[float, Ge(0), Lt(1)], ...],
        Option("--dropout", "Dropout rate before each layer of the head: one, or one for each."),
    ] = (0.2,)
    dropout_kind: Annotated[
        Literal["plain", "alpha"],
        Option("--dropout-kind", "Dropout in the head: plain, or alpha (for SELU)."),
    ] = "plain"
