import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from transferkit.backbones.head import ACTIVATIONS, Classifier, make_head

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def shapes(head: nn.Sequential) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("hidden", [(), (7,), (16, 4)])
def test_layers_and_first_loss(hidden: tuple[int, ...]) -> None:
    head = make_head(10, 3, hidden, dropout=0.3).eval()
    widths = (10, *hidden, 3)
    assert shapes(head) == [(b, a) for a, b in pairwise(widths)]
    assert [d.p for d in head if isinstance(d, nn.Dropout)] == [0.3] * (len(hidden) + 1)
    logits = head(torch.randn(5, 10))
    assert torch.equal(logits, torch.zeros(5, 3))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_hidden_layers_have_he_initialisation_and_keep_the_variance() -> None:
    head = make_head(1000, 2, (2000,))
    linear = head[1]
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 1000), rel=0.01)
    assert torch.equal(linear.bias, torch.zeros(2000))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, same, other = (make_head(8, 2, (4,), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1].weight, same[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name: str) -> None:
    head = make_head(4, 2, (3,), name)
    inputs = torch.linspace(-3, 3, 11)
    reference = {"relu": torch.relu, "tanh": torch.tanh}.get(name, getattr(nn.functional, name))
    assert torch.equal(head[2](inputs), reference(inputs))


def test_a_classifier_takes_bytes() -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(3, 2)
    model = Classifier(backbone, head, MEAN, STD)
    images = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    features = ((images / 255.0 - mean) / std).mean(dim=(2, 3))
    assert torch.allclose(model.features(images), features, atol=1e-6)
    assert torch.allclose(model(images), head(features), atol=1e-6)
    assert torch.equal(model(images), model(images.float()))
    assert set(model.state_dict()) == {"head.weight", "head.bias"}  # mean and std are no weights
