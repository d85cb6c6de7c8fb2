import pytest

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm  # isort: skip
import torch
from torch import Tensor, nn

from transferkit.backbones.folding import fold_batchnorm, foldable_pairs


def shaken(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights of its own, so that folding changes numbers."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(generator=generator)
    return network.eval()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_a_folded_network_computes_the_same(name: str) -> None:
    network = shaken(timm.create_model(name, num_classes=5))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    folded, count = fold_batchnorm(network, images)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    left = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert count == len(norms)
    assert left == []
    with torch.no_grad():
        assert torch.allclose(folded(images), network(images), rtol=1e-4, atol=1e-4)


class Reused(nn.Module):
    """A convolution whose output goes through batch norm, and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        made = self.conv(images)
        return self.norm(made) + made


def test_what_would_change_the_function_is_left_unfolded() -> None:
    network = shaken(Reused())
    images = torch.randn(2, 3, 4, 4)
    assert foldable_pairs(network, images) == [("conv", "norm")]
    folded, count = fold_batchnorm(network, images)
    assert count == 0
    assert torch.equal(folded(images), network(images))
