import copy

import pytest

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm  # isort: skip
import torch
from torch import Tensor, nn

from transferkit.backbones.folding import (
    ALONE,
    PADS,
    SHARED,
    Folding,
    fold_batchnorm,
    foldable_pairs,
)


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
    assert len(count.pairs) == len(norms)
    assert left == []
    assert count.left == {}
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
    assert count == Folding((), {"norm": SHARED})
    assert torch.equal(folded(images), network(images))


@pytest.mark.parametrize(
    "after",
    [
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(6, 9, (1, 3), stride=2, groups=3, bias=False),
        nn.Conv2d(6, 6, 1),
    ],
    ids=["plain", "groups", "1 x 1"],
)
def test_a_batch_norm_goes_into_the_convolution_after_it(after: nn.Module) -> None:
    network = shaken(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6), copy.deepcopy(after), nn.ReLU()))
    images = torch.randn(3, 6, 9, 9, generator=torch.Generator().manual_seed(1))
    folded, found = fold_batchnorm(network, images)
    assert found == Folding((("1", "2"),), {})
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)


def test_a_linear_layer_takes_the_batch_norms_on_both_its_sides() -> None:
    layers = [nn.BatchNorm1d(5, affine=False), nn.Dropout(0.5), nn.Linear(5, 7, bias=False)]
    layers += [nn.BatchNorm1d(7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 2)]
    network = shaken(nn.Sequential(*layers[1:]))
    network = nn.Sequential(layers[0], network).eval()
    layers[0].running_mean.normal_()
    features = torch.randn(4, 5)
    folded, found = fold_batchnorm(network, features)
    assert len(found.pairs) == 3
    assert not any(isinstance(m, nn.BatchNorm1d) for m in folded.modules())
    torch.testing.assert_close(folded(features), network(features), rtol=1e-5, atol=1e-5)


class Branched(nn.Module):
    """Three batch norms: one that folds, one before padding, one whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.second, self.padded = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.third, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.fourth = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        made = self.padded(self.second(self.first(self.conv(images)).relu())).relu()
        normed = self.third(made)
        return self.fourth((self.last(normed) + normed).relu())


def test_each_batch_norm_that_stays_says_why() -> None:
    network = shaken(Branched())
    images = torch.randn(2, 3, 6, 6)
    folded, found = fold_batchnorm(network, images)
    assert found.pairs == (("conv", "first"),)
    assert found.left == {"second": PADS, "third": SHARED, "fourth": ALONE}
    assert found.text.startswith("folded 1 of 4 batch norms; left second: the convolution after it")
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)
