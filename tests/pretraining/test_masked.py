from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Config, Pretraining
from transferkit.errors import UserError
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.masked import (
    choose_visible,
    mae,
    normalised_patches,
    patches_of,
    picture_of,
    sine_positions,
    visible_tokens,
)
from transferkit.pretraining.method import Batch
from transferkit.verbs import pretrain as verb

Make = Callable[..., Config]


def vit_encoder() -> Encoder:
    return Encoder(create_backbone("test_vit", pretrained=False, image_size=64)).eval()


def test_patches_are_cut_as_the_transformer_cuts_them_and_put_together_again() -> None:
    images = torch.rand(2, 3, 32, 48)
    patches = patches_of(images, (16, 8))
    assert patches.shape == (2, 12, 384)
    assert torch.equal(picture_of(patches, (16, 8), (2, 6)), images)
    first_row_second = images[0, :, :16, 8:16].permute(1, 2, 0).flatten()
    assert torch.equal(patches[0, 1], first_row_second)


@pytest.mark.parametrize(("ratio", "shown"), [(0.75, 4), (0.5, 8), (0.999, 1), (0.001, 15)])
def test_so_many_patches_are_shown_each_as_often_as_any_other(ratio: float, shown: int) -> None:
    torch.manual_seed(0)
    visible = choose_visible(4000, 16, ratio)
    assert visible.shape == (4000, shown)
    assert bool((visible.diff(dim=1) > 0).all())
    counts = torch.bincount(visible.flatten(), minlength=16) / 4000
    torch.testing.assert_close(counts, torch.full((16,), shown / 16), atol=0.04, rtol=0)


def test_with_all_patches_visible_the_tokens_are_those_of_the_whole_transformer() -> None:
    encoder = vit_encoder()
    images = torch.rand(2, 3, 64, 64)
    visible = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        tokens = visible_tokens(encoder.backbone, images, visible)  # type: ignore[arg-type]
        whole = encoder.backbone.forward_features(images)  # type: ignore[operator]
    torch.testing.assert_close(tokens, whole[:, encoder.backbone.num_prefix_tokens :])  # type: ignore[misc]


def test_hidden_patches_are_not_seen() -> None:
    encoder = vit_encoder()
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 16:32] = 0  # the second column of patches: 1, 5, 9, 13
    visible = torch.tensor([[0, 2, 3, 4, 15]])
    with torch.no_grad():
        one, other = (visible_tokens(encoder.backbone, i, visible) for i in (images, changed))  # type: ignore[arg-type]
    assert torch.equal(one, other)


def test_only_hidden_patches_count_each_by_its_own_scale() -> None:
    encoder = vit_encoder()
    method = mae(encoder, Pretraining(method="mae"), seed=0)
    method.networks.eval()
    images = torch.rand(3, 3, 64, 64)
    labels = torch.zeros(3, dtype=torch.int64)
    torch.manual_seed(5)
    (move,) = method.phases[0].learn(Batch((images,), labels, 0.0))
    torch.manual_seed(5)
    visible = choose_visible(3, 16, 0.75)
    with torch.no_grad():
        tokens = visible_tokens(encoder.backbone, encoder.normalized(images), visible)  # type: ignore[arg-type]
        drawn = method.networks["decoder"](tokens, visible)  # type: ignore[index]
    target = normalised_patches(patches_of(images, (16, 16)))
    errors = [
        float((drawn[n, p] - target[n, p]).square().mean())
        for n in range(3)
        for p in range(16)
        if p not in visible[n].tolist()
    ]
    assert float(move.loss.detach()) == pytest.approx(sum(errors) / 36, rel=1e-4)


def test_positions_differ_everywhere() -> None:
    positions = sine_positions((7, 5), 128)[0]
    assert positions.shape == (35, 128)
    distances = torch.cdist(positions, positions) + 10 * torch.eye(35)
    assert float(distances.min()) > 0.3


@pytest.mark.parametrize(
    ("backbone", "text"),
    [("resnet18", "--method inpainting"), ("cnn", "vit_tiny_patch16_224")],
)
def test_other_networks_are_refused_with_advice(
    backbone: str, text: str, pretraining_config: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs a vision transformer") as told:
        verb.pretrain(pretraining_config(backbone, method="mae"), tmp_path / "run", print)
    assert told.value.exit_code == 2
    assert text in told.value.remedy


def test_pictures_of_hardly_any_patches_are_refused() -> None:
    small = Encoder(create_backbone("test_vit", pretrained=False, image_size=16))
    with pytest.raises(UserError, match="1 × 1 patches of 16 px") as told:
        mae(small, Pretraining(method="mae"), 0)
    assert "--image-size 128" in told.value.remedy
