"""New layers on top of a backbone: hidden layers and a classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.layers import initialize_, make_activation, uninitialized
from transferkit.config.initializers import misfit, paired_initializer


@dataclass(frozen=True)
class HeadDesign:
    """How the new layers are built; a run folder keeps it to build them again.

    hidden: widths. activation, slope: of the hidden layers. initializer: of the hidden layers,
    None takes what suits the activation; classifier_initializer: of the last layer. batchnorm: any
    of "first" (of the features) and "before" or "after" every activation. dropout: before each new
    layer, the classifier included, one rate for all or one for each. dropout_kind: "plain", or
    "alpha" after SELU. selu_features: the features come out of SELU too, so that alpha dropout is
    right for them.
    """

    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    slope: float | None = None
    initializer: str | None = None
    classifier_initializer: str = "zeros"
    batchnorm: tuple[str, ...] = ()
    dropout: tuple[float, ...] = (0.0,)
    dropout_kind: str = "plain"
    selu_features: bool = False

    @property
    def start(self) -> str:
        """The initialiser of the hidden layers."""
        return self.initializer or paired_initializer(self.activation)

    @property
    def rates(self) -> tuple[float, ...]:
        """The dropout before each of the new layers."""
        count = len(self.hidden) + 1
        return self.dropout * count if len(self.dropout) == 1 else self.dropout

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for model.json."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "HeadDesign":
        """Read what `to_dict` wrote. Raises KeyError or TypeError for other names."""
        lists = {name: tuple(values[name]) for name in ("hidden", "batchnorm", "dropout")}
        return HeadDesign(**{**values, **lists})


def make_head(
    num_features: int, num_classes: int, design: HeadDesign | None = None, seed: int = 0
) -> nn.Sequential:
    """Build (N, D) -> (N, K): [batch norm], then for each width [dropout, linear, activation with
    batch norm before or after it], then dropout and the classifier.

    Biases start at 0. A classifier at zero makes the first loss exactly ln K, and the first steps
    do not shake the blocks below.
    """
    design = design or HeadDesign()
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    if "first" in design.batchnorm:
        layers.append(nn.BatchNorm1d(num_features))
    widths = (num_features, *design.hidden)
    for i, (width, next_width) in enumerate(pairwise(widths)):
        normed = "before" in design.batchnorm  # takes away what a bias would add
        layers += [_dropout(design, i), _linear(width, next_width, design.start, generator, normed)]
        layers += [nn.BatchNorm1d(next_width)] if normed else []
        layers.append(make_activation(design.activation, design.slope))
        layers += [nn.BatchNorm1d(next_width)] if "after" in design.batchnorm else []
    layers.append(_dropout(design, len(design.hidden)))
    layers.append(_linear(widths[-1], num_classes, design.classifier_initializer, generator))
    return nn.Sequential(*layers)


def _dropout(design: HeadDesign, number: int) -> nn.Module:
    """Make the dropout before a new layer; alpha only where SELU was before it."""
    after_selu = design.activation == "selu" if number else design.selu_features
    alpha = design.dropout_kind == "alpha" and after_selu
    return (nn.AlphaDropout if alpha else nn.Dropout)(design.rates[number])


def _linear(
    width: int, next_width: int, initializer: str, generator: torch.Generator, normed: bool = False
) -> nn.Linear:
    linear = uninitialized(nn.Linear, width, next_width, bias=not normed)
    initialize_(linear.weight, initializer, generator)
    if not normed:
        nn.init.zeros_(linear.bias)
    return linear


def head_misfit(num_features: int, design: HeadDesign) -> str:
    """Return why the hidden layers' initialiser does not go with their activation, or ""."""
    widths = (num_features, *design.hidden)
    reasons = (misfit(design.start, design.activation, a, b) for a, b in pairwise(widths))
    return next((reason for reason in reasons if reason), "")


class Classifier(nn.Module):
    """A backbone and a head that take pictures as bytes: normalisation is part of the model."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, head: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Bring images (N, 3, H, W) with values 0..255 to the scale the backbone expects."""
        return (images.float() / 255 - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (N, D) of images (N, 3, H, W), values 0..255."""
        return self.read(self.normalize(images))

    def read(self, inputs: Tensor) -> Tensor:
        """Return pooled features (N, D) of normalised images (N, 3, H, W)."""
        return self.backbone(inputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W), values 0..255."""
        return self.head(self.features(images))


class FrozenTrunk(nn.Module):
    """Pictures (N, 3, H, W) as bytes to the activation at a boundary: normalisation, then trunk."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier, trunk: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        """Return the boundary's activation (N, ...)."""
        return self.trunk((images.float() / 255 - self.mean) / self.std)
