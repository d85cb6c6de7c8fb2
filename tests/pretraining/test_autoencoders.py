from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence
from torchmetrics.image import StructuralSimilarityIndexMeasure

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.errors import UserError
from transferkit.pretraining.autoencoders import (
    LOSSES,
    Decoder,
    autoencoder,
    bernoulli_divergence,
    gaussian_divergence,
    relative_magnitudes,
)
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch
from transferkit.recipes.reading import load_config


@pytest.mark.parametrize(
    ("maps", "size"), [((512, 1, 1), 32), ((64, 2, 2), 32), ((64, 7, 7), 224), ((8, 5, 5), 48)]
)
def test_a_decoder_draws_at_the_size_of_the_picture(maps: tuple[int, ...], size: int) -> None:
    drawn = Decoder(maps, size, size)(torch.rand(2, *maps)).detach()
    assert drawn.shape == (2, 3, size, size)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def learned(variant: str, images: Tensor, backbone: str = "cnn", **more: Any) -> tuple[Any, Any]:
    """Return a method at work on a small network, and its first move on some pictures."""
    encoder = Encoder(create_backbone(backbone, pretrained=False, image_size=32))
    options = Pretraining(method="autoencoder", variant=variant, **more)  # type: ignore[arg-type]
    method = autoencoder(encoder, options, seed=0)
    method.networks.eval()
    torch.manual_seed(7)
    (move,) = method.phases[0].learn(Batch((images,), torch.zeros(len(images)).long(), 0.0))
    return method, move


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("variant", ["plain", "denoising"])
def test_the_loss_is_between_the_drawn_and_the_clean_picture(loss: str, variant: str) -> None:
    images = torch.rand(4, 3, 32, 32)
    more = {"noise": 0.5} if variant == "denoising" else {}
    method, move = learned(variant, images, loss=loss, **more)
    torch.manual_seed(7)
    seen = images + 0.5 * torch.randn_like(images) if variant == "denoising" else images
    drawn = method.networks["decoder"](method.networks["encoder"].maps(seen))
    difference = drawn - images
    expected = difference.square().mean() if loss == "mse" else difference.abs().mean()
    torch.testing.assert_close(move.loss, expected)


def test_ssim_is_that_of_torchmetrics_and_nothing_for_the_same_picture() -> None:
    images, other = torch.rand(2, 2, 3, 32, 32)
    reference = StructuralSimilarityIndexMeasure(data_range=1.0)
    torch.testing.assert_close(LOSSES["ssim"](images, other), 1 - reference(images, other))
    assert float(LOSSES["ssim"](images, images)) == pytest.approx(0, abs=1e-6)
    assert float(LOSSES["ssim"](images[..., :8, :8], other[..., :8, :8])) > 0


def test_the_divergence_of_a_gaussian_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(2, 6, 5)
    one = Normal(mean, (0.5 * log_variance).exp())
    standard = Normal(torch.zeros(6, 5), torch.ones(6, 5))
    expected = kl_divergence(one, standard).sum(dim=1)
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), expected)


def test_the_divergence_of_units_from_their_target_is_that_of_torch() -> None:
    on = torch.rand(20)
    expected = kl_divergence(Bernoulli(torch.tensor(0.05)), Bernoulli(on))
    torch.testing.assert_close(bernoulli_divergence(0.05, on), expected)


def test_the_variational_loss_weighs_the_divergence_against_a_pixels_error() -> None:
    images = torch.rand(4, 3, 32, 32)
    _, move = learned("variational", images, kl_weight=0.5, latent=8)
    figures = move.figures
    expected = figures["reconstruction"] + 0.5 * figures["divergence"] / (3 * 32 * 32)
    assert float(move.loss.detach()) == pytest.approx(expected, rel=1e-5)
    _, free = learned("variational", images, kl_weight=0.0, latent=8)
    assert float(free.loss.detach()) == pytest.approx(figures["reconstruction"], rel=1e-5)


def test_the_sparse_loss_adds_the_mean_size_of_the_maps_in_units_of_their_scale() -> None:
    images = torch.rand(4, 3, 32, 32)
    method, move = learned("sparse", images, sparsity_weight=0.25)
    maps = method.networks["encoder"].maps(images).detach()
    extra = float(move.loss.detach()) - move.figures["reconstruction"]
    ratio = maps.abs().mean() / maps.square().mean().sqrt()
    assert extra == pytest.approx(0.25 * float(ratio), rel=1e-4)
    _, target = learned("sparse", images, sparsity_weight=0.25, sparsity=0.1)
    on = (maps.abs() / maps.square().mean().sqrt()).tanh().mean(dim=(0, 2, 3))
    extra = float(target.loss.detach()) - target.figures["reconstruction"]
    assert extra == pytest.approx(0.25 * float(bernoulli_divergence(0.1, on).mean()), rel=1e-4)


def test_sparsity_is_the_share_that_is_on_at_whatever_scale() -> None:
    """Maps behind a ReLU reach a target of 0.05, and smaller maps are no sparser ones."""
    maps = torch.zeros(10, 4, 4, 5)
    maps[..., 0, 0] = 3.0  # a twentieth
    on = relative_magnitudes(maps).tanh().mean(dim=(0, 2, 3))
    torch.testing.assert_close(on, torch.full((4,), 0.05), atol=0.001, rtol=0)
    torch.testing.assert_close(relative_magnitudes(1e-2 * maps), relative_magnitudes(maps))
    assert float(relative_magnitudes(maps).mean()) == pytest.approx(0.05**0.5, rel=1e-4)
    assert float(relative_magnitudes(torch.full((2, 3, 4, 4), 7.0)).mean()) == pytest.approx(1)
    nothing = torch.zeros(2, 3, 4, 4, requires_grad=True)
    relative_magnitudes(nothing).sum().backward()
    assert nothing.grad is not None
    assert bool(nothing.grad.isfinite().all())


@pytest.mark.parametrize("target", [None, 0.3])
def test_sparsity_comes_closer_to_its_target_with_its_weight(target: float | None) -> None:
    images = torch.rand(4, 3, 32, 32)
    batch = Batch((images,), torch.zeros(4).long(), 0.0)
    off = []
    for weight in (1e-4, 10.0):
        method, _ = learned("sparse", images, sparsity=target, sparsity_weight=weight)
        optimizer = torch.optim.Adam(method.networks.parameters(), 2e-3)
        for _ in range(10):
            (move,) = method.phases[0].learn(batch)
            optimizer.zero_grad()
            move.loss.backward()
            optimizer.step()
        with torch.no_grad():
            share = relative_magnitudes(method.networks["encoder"].maps(images)).tanh().mean()
        off.append(abs(float(share) - (target or 0.0)))
    assert off[1] < 0.8 * off[0]


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_phase_of_the_stack_trains_one_layer_and_the_last_all(
    backbone: str, tied: bool
) -> None:
    images = torch.rand(4, 3, 32, 32)
    method, _ = learned("stacked", images, backbone, tied=tied)
    layers = len(method.phases) - 1
    assert [phase.name for phase in method.phases][-2:] == [f"layer {layers}", "together"]
    for number, phase in enumerate(method.phases[:-1]):
        for parameter in method.networks.parameters():
            parameter.grad = None
        (move,) = phase.learn(Batch((images,), torch.zeros(4).long(), 0.0))
        move.loss.backward()
        moved = {n for n, p in method.networks.named_parameters() if p.grad is not None}
        assert all(f"blocks.{number}." in name or f"inverses.{number}." in name for name in moved)
        assert (f"inverses.{number}.weight" in moved) != tied
    player = method.phases[-1].players["network"]
    assert set(player.parameters()) == set(method.networks.parameters())


def test_a_tied_way_back_is_the_layer_transposed() -> None:
    method, _ = learned("stacked", torch.rand(2, 3, 32, 32), "mlp", tied=True)
    layer = method.networks["encoder"].backbone.blocks[0].linear
    outputs = torch.randn(3, layer.out_features)
    back = method.networks["inverses"][0](outputs)
    torch.testing.assert_close(back, outputs @ layer.weight)
    assert not any("weight" in name for name, _ in method.networks["inverses"].named_parameters())


def test_the_way_back_through_a_convolution_has_the_shape_of_its_input() -> None:
    method, _ = learned("stacked", torch.rand(2, 3, 32, 32), "cnn")
    seen = torch.rand(2, 3, 32, 32)
    for block, inverse in zip(
        method.networks["encoder"].backbone.blocks, method.networks["inverses"], strict=True
    ):
        out = block(seen)
        assert inverse(out).shape == seen.shape
        seen = out


def test_a_stack_needs_layers_one_after_the_other() -> None:
    with pytest.raises(UserError, match="--variant stacked needs a plain stack") as told:
        learned("stacked", torch.rand(2, 3, 32, 32), "resnet18")
    assert told.value.exit_code == 2


def test_options_of_another_variant_are_refused() -> None:
    for key, value in (("noise", 0.3), ("kl_weight", 1.0), ("latent", 8), ("tied", True)):
        given = {"pretraining.method": "autoencoder", f"pretraining.{key}": value}
        with pytest.raises(UserError, match=f"pretraining.{key} has no effect"):
            load_config(None, (), given)
    given = {"pretraining.method": "autoencoder", "pretraining.variant": "stacked"}
    with pytest.raises(UserError, match="ssim compares pictures"):
        load_config(None, (), given | {"pretraining.loss": "ssim"})
