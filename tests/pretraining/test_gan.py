from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from transferkit.backbones.create import create_backbone
from transferkit.config import Config, Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.gan import (
    GAN_LOSSES,
    Critic,
    Generator,
    gan,
    normalise_spectrally,
    r1,
    variety,
    warnings,
)
from transferkit.pretraining.method import Batch, Method
from transferkit.runs.folder import open_run
from transferkit.verbs import pretrain as verb

Make = Callable[..., Config]
REAL, FAKE = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.25])


def test_losses_are_as_published() -> None:
    discriminator_loss, generator_loss = GAN_LOSSES["hinge"]
    assert float(discriminator_loss(REAL, FAKE)) == pytest.approx((0.5 + 0) / 2 + (0 + 1.25) / 2)
    assert float(generator_loss(FAKE)) == pytest.approx((3 - 0.25) / 2)
    discriminator_loss, generator_loss = GAN_LOSSES["non-saturating"]
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(REAL, torch.ones(2)) + bce(FAKE, torch.zeros(2))
    torch.testing.assert_close(discriminator_loss(REAL, FAKE), expected)
    torch.testing.assert_close(generator_loss(FAKE), bce(FAKE, torch.ones(2)))


def test_r1_is_the_squared_slope_at_real_pictures() -> None:
    weight = torch.randn(48, generator=torch.Generator().manual_seed(0))

    def critic(images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) ** 2) @ weight

    images = torch.rand(5, 3, 4, 4)
    slope = 2 * images.flatten(1) * weight
    torch.testing.assert_close(r1(critic, images), slope.square().sum(dim=1).mean())


def test_the_penalty_comes_every_16th_step_and_weighs_16_times_as_much() -> None:
    encoder = Encoder(create_backbone("cnn", pretrained=False, image_size=16))
    plain = gan(encoder, Pretraining(method="gan", gan_penalty="none"), 0)
    method = gan(encoder, Pretraining(method="gan"), 0)
    images = torch.rand(4, 3, 16, 16)

    def loss(made: Method) -> float:
        torch.manual_seed(0)
        made.networks["critic"].score = score  # the same in both
        made.networks["generator"] = plain.networks["generator"]
        with torch.no_grad():
            score.weight.fill_(0.1)
        return float(
            next(made.phases[0].learn(Batch((images,), torch.zeros(4), 0.0))).loss.detach()
        )

    score = nn.Linear(encoder.num_features, 1)
    more = [loss(method) - loss(plain) for _ in range(18)]
    penalty = r1(plain.networks["critic"], images).detach()
    expected = 16 * (16 / 32) ** 2 / 2 * float(penalty)
    assert [step for step, value in enumerate(more) if abs(value) > 1e-3] == [0, 16]
    assert more[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("size", [16, 32, 48, 64, 224])
def test_a_generator_draws_at_the_size_of_the_pictures(size: int) -> None:
    drawn = Generator(8, size, size)(torch.randn(2, 8)).detach()
    assert drawn.shape == (2, 3, size, size)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_spectral_norm_makes_the_largest_singular_value_one_and_leaves_plain_names() -> None:
    encoder = Encoder(create_backbone("cnn", pretrained=False, image_size=16))
    names = set(encoder.backbone.state_dict())
    critic = Critic(encoder)
    layers = normalise_spectrally(critic)
    critic.train()
    for _ in range(60):
        critic(torch.rand(2, 3, 16, 16))
    for layer in layers:
        values = torch.linalg.svdvals(layer.weight.detach().flatten(1))
        assert float(values[0]) == pytest.approx(1, abs=0.02)
    for layer in layers:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert set(encoder.backbone.state_dict()) == names


@pytest.mark.parametrize("penalty", ["spectral", "none"])
@pytest.mark.parametrize("loss", GAN_LOSSES)
def test_the_backbone_is_kept_under_its_own_names(
    penalty: str, loss: str, pretraining_config: Make, tmp_path: Path
) -> None:
    config = pretraining_config("cnn", method="gan", epochs=1, gan_penalty=penalty, gan_loss=loss)
    summary = verb.pretrain(config, tmp_path / "run", lambda event: None)
    shown = {"loss_discriminator", "loss_generator", "told_apart", "variety"}
    assert shown | {"score_real", "score_drawn"} <= set(summary.figures)
    _, tensors = open_run(tmp_path / "run").load_model()
    fresh = create_backbone("cnn", pretrained=False, image_size=32).model
    fresh.load_state_dict(tensors)
    assert (tmp_path / "run/plots/samples.png").is_file()


def test_scores_are_those_of_the_discriminator() -> None:
    encoder = Encoder(create_backbone("cnn", pretrained=False, image_size=16))
    method = gan(encoder, Pretraining(method="gan", latent=4), seed=0)
    method.networks.eval()
    images = torch.rand(6, 3, 16, 16)
    torch.manual_seed(3)
    moves = method.phases[0].learn(Batch((images,), torch.zeros(6).long(), 0.0))
    figures = next(moves).figures
    torch.manual_seed(3)
    with torch.no_grad():
        critic, generator = method.networks["critic"], method.networks["generator"]  # type: ignore[index]
        assert figures["score_real"] == pytest.approx(float(critic(images).mean()), rel=1e-4)
        drawn = critic(generator(torch.randn(6, 4)))
    assert figures["score_drawn"] == pytest.approx(float(drawn.mean()), rel=1e-4)
    right = (critic(images) > 0).sum() + (drawn < 0).sum()
    assert figures["told_apart"] == pytest.approx(float(right) / 12)


def test_spectral_norm_goes_on_where_it_was_interrupted(
    pretraining_config: Make, tmp_path: Path
) -> None:
    config = pretraining_config("cnn", method="gan", epochs=2, gan_penalty="spectral")
    verb.pretrain(config, tmp_path / "whole", lambda event: None)

    def stop(event: object) -> None:
        if type(event).__name__ == "PretrainingEpoch":
            raise KeyboardInterrupt

    with pytest.raises(Exception, match="interrupted"):
        verb.pretrain(config, tmp_path / "parts", stop)
    verb.resume(tmp_path / "parts", lambda event: None)
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "parts"))
    assert one == other


def test_variety_is_one_for_pictures_and_nothing_for_copies() -> None:
    pictures = torch.rand(64, 3, 8, 8)
    assert variety(pictures, pictures) == pytest.approx(1)
    assert variety(pictures[:1].expand(64, -1, -1, -1), pictures) == pytest.approx(0, abs=1e-6)


def test_a_collapse_and_a_winning_side_are_told_after_a_few_epochs() -> None:
    def rows(**figures: float) -> list[Mapping[str, float]]:
        return [{"variety": 0.8, "told_apart": 0.7, **figures}] * 3

    assert warnings(rows()) == []
    assert warnings(rows(variety=0.1)[:2]) == []
    assert "mode collapse" in warnings(rows(variety=0.1))[0]
    assert "discriminator wins" in warnings(rows(told_apart=1.0))[0]
    assert "generator wins" in warnings(rows(told_apart=0.5))[0]
