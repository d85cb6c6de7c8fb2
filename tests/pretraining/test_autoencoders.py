import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.autoencoders import LOSSES, Decoder, autoencoder
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch


@pytest.mark.parametrize(
    ("maps", "size"), [((512, 1, 1), 32), ((64, 2, 2), 32), ((64, 7, 7), 224), ((8, 5, 5), 48)]
)
def test_a_decoder_draws_at_the_size_of_the_picture(maps: tuple[int, ...], size: int) -> None:
    drawn = Decoder(maps, size, size)(torch.rand(2, *maps)).detach()
    assert drawn.shape == (2, 3, size, size)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("variant", ["plain", "denoising"])
def test_the_loss_is_between_the_drawn_and_the_clean_picture(loss: str, variant: str) -> None:
    encoder = Encoder(create_backbone("cnn", pretrained=False, image_size=32))
    options = Pretraining(method="autoencoder", loss=loss, variant=variant, noise=0.5)  # type: ignore[arg-type]
    method = autoencoder(encoder, options, seed=0)
    method.networks.eval()
    images = torch.rand(4, 3, 32, 32)
    torch.manual_seed(7)
    (move,) = method.phases[0].learn(Batch((images,), torch.zeros(4, dtype=torch.int64), 0.0))
    torch.manual_seed(7)
    seen = images + 0.5 * torch.randn_like(images) if variant == "denoising" else images
    drawn = method.networks["decoder"](encoder.maps(seen))  # type: ignore[index]
    difference = drawn - images
    expected = difference.square().mean() if loss == "mse" else difference.abs().mean()
    torch.testing.assert_close(move.loss, expected)
