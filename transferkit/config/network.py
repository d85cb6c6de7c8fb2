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


@dataclass(frozen=True)
class BackboneOptions(Section):
    """The network under the new head: pretrained, or one of `FROM_SCRATCH`."""

    name: Annotated[
        str,
        Option("--backbone", "Any timm model (`transferkit models`), or from scratch mlp, cnn."),
    ] = "tf_efficientnet_lite0"
    pretrained: Annotated[
        bool, Option("--pretrained/--no-pretrained", "Start from pretrained or random weights.")
    ] = True
    weights: Annotated[
        Path | None, Option("--weights", "Weights file: .safetensors, or a torch state dict.")
    ] = None
    from_run: Annotated[
        Path | None,
        Option("--from", "Start from the backbone of an earlier run, e.g. of pretrain."),
    ] = None
    image_size: Annotated[
        int | None,
        Ge(16),
        Le(2048),
        Option("--image-size", "Input side in pixels; else the model's."),
    ] = None
    drop_path: Annotated[
        float, Ge(0), Lt(1), Option("--drop-path", "Stochastic depth rate in unfrozen blocks.")
    ] = 0.0
    depth: Annotated[
        int | None,
        Ge(1),
        Le(200),
        Option("--backbone-depth", "Of mlp, cnn: hidden layers [mlp 3; cnn 6]."),
    ] = None
    width: Annotated[
        int | None,
        Ge(1),
        Le(8192),
        Option("--backbone-width", "Of mlp: units per layer; of cnn: first channels [128; 32]."),
    ] = None
    activation: Annotated[
        Activation | None, Option("--activation", "Of mlp, cnn: the layers' activation [relu].")
    ] = None
    slope: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--slope", "Of mlp, cnn: slope of leaky_relu, first one of prelu [0.01; 0.25]."),
    ] = None
    initializer: Annotated[
        str | None,
        Option("--initializer", "Of mlp, cnn: he_normal, normal:0.1 ... [by --activation]."),
    ] = None
    batchnorm: Annotated[
        tuple[Literal["first", "before", "after"], ...],
        Option("--backbone-batchnorm", "Of mlp, cnn: first layer; before or after activations."),
    ] = ()
    dropout: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--backbone-dropout", "Of mlp, cnn: dropout after every hidden layer [0]."),
    ] = None
    dropout_kind: Annotated[
        Literal["plain", "alpha", "spatial"],
        Option("--backbone-dropout-kind", "Of mlp, cnn: alpha is for SELU, spatial for cnn."),
    ] = "plain"

    pooling: Annotated[
        Literal["avg", "max", "avgmax", "catavgmax", "token"] | None,
        Option("--pooling", "How the last maps or tokens become features [the model's own way]."),
    ] = None
    drop_top_blocks: Annotated[
        int, Ge(0), Option("--drop-top-blocks", "Block groups to take off before the new head.")
    ] = 0
    reuse_blocks: Annotated[
        int | None,
        Ge(1),
        Option("--reuse-blocks", "Lowest block groups to keep the weights of; random above."),
    ] = None
    replace_activations: Annotated[
        Activation | None,
        Option("--replace-activations", "Another activation in all blocks of a timm model."),
    ] = None

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
        Option("--head-layers", "Widths of new hidden layers before the classifier, e.g. 256,64."),
    ] = ()
    activation: Annotated[
        Activation, Option("--head-activation", "Activation of the new hidden layers.")
    ] = "relu"
    slope: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--head-slope", "Slope of leaky_relu, first slope of prelu [0.01; 0.25]."),
    ] = None
    initializer: Annotated[
        str | None,
        Option(
            "--head-initializer", "Start of hidden layers: he_normal, normal:0.1 [by activation]."
        ),
    ] = None
    classifier_initializer: Annotated[
        str | None,
        Option(
            "--classifier-initializer",
            "Start of the last layer [zeros; mlp, cnn: glorot_normal].",
        ),
    ] = None
    batchnorm: Annotated[
        tuple[Literal["first", "before", "after"], ...],
        Option("--head-batchnorm", "As the first new layer; before or after every activation."),
    ] = ()
    dropout: Annotated[
        tuple[Annotated[float, Ge(0), Lt(1)], ...],
        Option("--dropout", "Dropout before each new layer: one rate, or one for each."),
    ] = (0.2,)
    dropout_kind: Annotated[
        Literal["plain", "alpha"],
        Option("--dropout-kind", "Alpha keeps mean and variance after SELU."),
    ] = "plain"
