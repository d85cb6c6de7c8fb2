"""New layers on top of a backbone: hidden layers and a classifier."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def make_head(
    num_features: int,
    num_classes: int,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Build (N, D) -> (N, K): [dropout, linear, activation] per hidden width, dropout, linear.

    The hidden layers start with He initialisation. The classifier starts at zero, so that the
    first loss is exactly ln K and the first steps do not shake the blocks below.
    """
    layers: list[nn.Module] = []
    width = num_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for next_width in hidden:
            linear = nn.Linear(width, next_width)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [nn.Dropout(dropout), linear, ACTIVATIONS[activation]()]
            width = next_width
        classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return nn.Sequential(*layers, nn.Dropout(dropout), classifier)


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
        return self.backbone(self.normalize(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W), values 0..255."""
        return self.head(self.features(images))
