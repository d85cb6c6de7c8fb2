from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.create import create_backbone
from transferkit.backbones.head import Classifier, HeadDesign, make_head
from transferkit.errors import UserError
from transferkit.inference.saliency import (
    choose_run,
    enlarged,
    grad_cam,
    last_maps,
    last_tokens,
    overlay,
    to_maps,
)

LINEAR = HeadDesign(classifier_initializer="normal:0.5")
HIDDEN = HeadDesign(hidden=(16,), activation="tanh", classifier_initializer="normal:0.5")
SIDE = 64


def classifier(name: str, design: HeadDesign = LINEAR, classes: int = 3) -> Classifier:
    backbone = create_backbone(name, pretrained=False, image_size=SIDE)
    head = make_head(backbone.num_features, classes, design, seed=1)
    norm = backbone.preprocessing
    return Classifier(backbone.model, head, norm.mean, norm.std).eval()


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "cnn"])
def test_under_a_linear_head_it_is_the_class_activation_map(name: str, images: Tensor) -> None:
    network: Any = classifier(name)
    targets = torch.tensor([0, 1, 2, 1])
    found = grad_cam(network, choose_run(network, name, (SIDE, SIDE)), images, targets)
    with torch.no_grad():
        maps = network.backbone.forward_features(network.normalize(images))  # (N, C, h, w)
    rows = network.head[-1].weight.detach()[targets]  # (N, C)
    places = maps.shape[2] * maps.shape[3]
    expected = (torch.einsum("nc,nchw->nhw", rows, maps) / places).relu()
    assert expected.amax() > 0
    torch.testing.assert_close(found, expected)


def test_tokens_give_what_the_whole_gradient_gives(images: Tensor) -> None:
    network: Any = classifier("test_vit", HIDDEN)
    run = choose_run(network, "test_vit", (SIDE, SIDE))
    assert run is last_tokens
    targets = torch.tensor([2, 0, 1, 1])
    found = grad_cam(network, run, images, targets)

    kept: list[Tensor] = []
    network.backbone.blocks[-2].register_forward_hook(lambda *seen: kept.append(seen[2]))
    logits = network(images)
    kept[0].retain_grad()
    logits[range(4), targets].sum().backward()
    height, width = network.backbone.patch_embed.grid_size
    prefix = network.backbone.num_prefix_tokens
    tokens = kept[0].detach()[:, prefix:]  # (N, h * w, D)
    slopes = kept[0].grad[:, prefix:].mean(dim=1, keepdim=True)  # type: ignore[index]
    expected = (tokens * slopes).sum(dim=2).relu().reshape(4, height, width)
    assert expected.amax() > 0
    torch.testing.assert_close(found, expected)


def test_a_picture_is_explained_alike_alone_and_in_a_batch(images: Tensor) -> None:
    network = classifier("test_efficientnet", HIDDEN)
    targets = torch.tensor([0, 1, 2, 0])
    together = grad_cam(network, last_maps, images, targets)
    alone = grad_cam(network, last_maps, images[2:3], targets[2:3])
    torch.testing.assert_close(together[2:3], alone)


def test_the_evidence_follows_what_is_looked_for() -> None:
    """A network whose one class is brightness looks where the picture is bright."""

    class Bright(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images, 8)

        def forward_head(self, maps: Tensor) -> Tensor:
            return maps.mean(dim=(2, 3))

        def forward(self, images: Tensor) -> Tensor:
            return self.forward_head(self.forward_features(images))

    head = nn.Sequential(nn.Linear(3, 2))
    nn.init.constant_(head[0].weight, 1.0)
    network = Classifier(Bright(), head, (0.0,) * 3, (1.0,) * 3)
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    picture[:, :, 40:56, 8:24] = 255
    run = choose_run(network, "bright", (64, 64))
    (found,) = enlarged(grad_cam(network, run, picture, torch.tensor([1])), (64, 64))
    assert found.max() == pytest.approx(1)
    assert found[44:52, 12:20].min() == pytest.approx(1)
    assert found[:32].max() == 0


@pytest.mark.parametrize("name", ["mlp"])
def test_without_places_it_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} keeps no map of places") as refused:
        choose_run(classifier(name), name, (SIDE, SIDE))
    assert refused.value.exit_code == 2


def test_layouts() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)  # (N, C, H, W)
    last: Any = SimpleNamespace(backbone=SimpleNamespace(output_fmt="NHWC"))
    assert torch.equal(to_maps(last, maps.permute(0, 2, 3, 1)), maps)
    grid = SimpleNamespace(grid_size=(3, 4))
    tokens: Any = SimpleNamespace(backbone=SimpleNamespace(patch_embed=grid, num_prefix_tokens=1))
    flat = torch.cat([torch.full((1, 1, 2), 99.0), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(to_maps(tokens, flat), maps)
    with pytest.raises(ValueError, match="grid"):
        to_maps(tokens, flat[:, 1:])


def test_an_overlay_shows_the_picture_and_covers_only_the_evidence() -> None:
    view = np.full((3, 32, 32), 100, dtype=np.uint8)
    view[0] = 130
    evidence = np.zeros((32, 32), dtype=np.float32)
    evidence[8:16, 8:16] = 1
    drawn = np.asarray(overlay(view, evidence).resize((65, 32), 0)).astype(int)
    assert abs(drawn[20, 10] - (130, 100, 100)).max() <= 2  # on the left, the picture
    assert abs(drawn[28, 45] - 110).max() <= 2  # on the right, grey where nothing speaks for it
    red, green, blue = drawn[12, 33 + 12]
    assert red > green + 30
    assert red > blue + 30
