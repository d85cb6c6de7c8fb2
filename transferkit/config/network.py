"""Options of the network: the backbone and the new layers on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from transferkit.config.option import Option, Section


@dataclass(frozen=True)
class BackboneOptions(Section):
    """The pretrained network under the new head."""

    name: Annotated[str, Option("--backbone", "Any timm model; see `transferkit models`.")] = (
        "tf_efficientnet_lite0"
    )
    pretrained: Annotated[
        bool, Option("--pretrained/--no-pretrained", "Start from pretrained or random weights.")
    ] = True
    weights: Annotated[
        Path | None, Option("--weights", "Weights file: .safetensors, or a torch state dict.")
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


@dataclass(frozen=True)
class HeadOptions(Section):
    """The new layers on top of the backbone."""

    layers: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Option("--head-layers", "Widths of new hidden layers before the classifier, e.g. 256,64."),
    ] = ()
    activation: Annotated[
        Literal["relu", "gelu", "silu", "selu", "elu", "tanh"],
        Option("--head-activation", "Activation of the hidden layers."),
    ] = "relu"
    dropout: Annotated[
        float, Ge(0), Lt(1), Option("--dropout", "Dropout before each new layer.")
    ] = 0.2
