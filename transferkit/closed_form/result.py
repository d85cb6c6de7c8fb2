"""A solved regression as an ordinary linear head over several depths of a backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transferkit.backbones.head import Classifier
from transferkit.closed_form.depths import Depth, read_mirrored
from transferkit.closed_form.ridge import Spectrum


class DepthClassifier(Classifier):
    """A classifier whose head stands on features of several depths, see `Depth`."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        depths: Sequence[Depth],
        mirror: bool = False,
    ) -> None:
        super().__init__(backbone, head, mean, std)
        self.depths = tuple(depths)
        self.mirror = mirror

    def read(self, inputs: Tensor) -> Tensor:
        """Return features (N, D) of all depths of normalised images (N, 3, H, W)."""
        return read_mirrored(self.backbone, self.depths, inputs, self.mirror)


@torch.no_grad()
def put_into(
    head: nn.Sequential, spectrum: Spectrum, penalty: float, temperature: float = 1.0
) -> None:
    """Write a solution into the last layer of a head (N, D) -> (N, K) without hidden layers.

    Its logits are the regression's scores divided by the temperature.
    """
    layer = head[-1]
    assert isinstance(layer, nn.Linear)
    weight, bias = spectrum.linear(penalty)
    layer.weight.copy_(weight / temperature)
    layer.bias.copy_(bias / temperature)
