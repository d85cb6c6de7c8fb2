import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from transferkit.backbones.head import Classifier, HeadDesign, head_misfit, make_head
from transferkit.backbones.layers import ACTIVATIONS, make_activation

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def shapes(head: nn.Sequential) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("hidden", [(), (7,), (16, 4)])
def test_layers_and_first_loss(hidden: tuple[int, ...]) -> None:
    head = make_head(10, 3, HeadDesign(hidden, dropout=(0.3,))).eval()
    widths = (10, *hidden, 3)
    assert shapes(head) == [(b, a) for a, b in pairwise(widths)]
    assert [d.p for d in head if isinstance(d, nn.Dropout)] == [0.3] * (len(hidden) + 1)
    logits = head(torch.randn(5, 10))
    assert torch.equal(logits, torch.zeros(5, 3))
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]))
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)


def test_hidden_layers_have_he_initialisation_and_keep_the_variance() -> None:
    head = make_head(1000, 2, HeadDesign((2000,)))
    linear = head[1]
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 1000), rel=0.01)
    assert torch.equal(linear.bias, torch.zeros(2000))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, same, other = (make_head(8, 2, HeadDesign((4,)), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[1].weight, same[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_initialisers_by_name(name: str) -> None:
    head = make_head(1000, 2, HeadDesign((600,), name))
    inputs = torch.linspace(-3, 3, 11)
    assert torch.equal(head[2](inputs), make_activation(name)(inputs))
    variance = {"identity": 1 / 800, "logistic": 1 / 800, "tanh": 1 / 800, "selu": 1 / 1000}
    assert head[1].weight.var().item() == pytest.approx(variance.get(name, 2 / 1000), rel=0.02)
    assert head_misfit(1000, HeadDesign((600,), name)) == ""
    assert head_misfit(1000, HeadDesign((600,), name, initializer="normal:1.0")) != ""


def kinds(head: nn.Sequential) -> str:
    letters = {
        **{nn.Dropout: "d", nn.AlphaDropout: "a", nn.Linear: "L"},
        **{nn.BatchNorm1d: "B", nn.SELU: "s", nn.ReLU: "r", nn.LeakyReLU: "k"},
    }
    return "".join(letters[type(layer)] for layer in head)


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        (HeadDesign(), "dL"),
        (HeadDesign(batchnorm=("first",)), "BdL"),
        (HeadDesign((8, 4)), "dLrdLrdL"),
        (HeadDesign((8, 4), batchnorm=("before",)), "dLBrdLBrdL"),
        (HeadDesign((8, 4), batchnorm=("first", "after")), "BdLrBdLrBdL"),
        (HeadDesign((8,), "selu", dropout=(0.1,), dropout_kind="alpha"), "dLsaL"),
        (HeadDesign((8,), "selu", dropout_kind="alpha", selu_features=True), "aLsaL"),
        (HeadDesign(dropout_kind="alpha", selu_features=True), "aL"),
        (HeadDesign((8,), dropout_kind="alpha", selu_features=True), "aLrdL"),
    ],
)
def test_what_is_built_in_which_order(design: HeadDesign, expected: str) -> None:
    head = make_head(10, 3, design)
    assert kinds(head) == expected
    logits = head(torch.randn(6, 10))
    assert logits.shape == (6, 3)
    with_bias = [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]
    hidden = len(design.hidden)
    assert with_bias == [("before" not in design.batchnorm)] * hidden + [True]
    assert HeadDesign.from_dict(json.loads(json.dumps(design.to_dict()))) == design


def test_dropout_layer_by_layer() -> None:
    head = make_head(10, 3, HeadDesign((8, 4), dropout=(0.1, 0.5, 0.0)))
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == [0.1, 0.5, 0.0]


def test_the_classifier_starts_as_it_is_told() -> None:
    head = make_head(4000, 50, HeadDesign(classifier_initializer="glorot_normal"))
    assert head[-1].weight.var().item() == pytest.approx(2 / 4050, rel=0.02)
    assert torch.equal(head[-1].bias, torch.zeros(50))


def test_a_slope_reaches_the_layers() -> None:
    head = make_head(4, 2, HeadDesign((3,), "leaky_relu", slope=0.3))
    assert head[2](torch.tensor([-1.0])).item() == pytest.approx(-0.3)


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
