from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.filling import colorization, grey, holes, inpainting
from transferkit.pretraining.method import Batch


def encoder() -> Encoder:
    return Encoder(create_backbone("cnn", pretrained=False, image_size=32))


def batch() -> Batch:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch((images,), torch.zeros(4, dtype=torch.int64), 0.0)


def test_grey_keeps_the_brightness() -> None:
    images = torch.rand(2, 3, 4, 4)
    seen = grey(images)
    assert torch.equal(seen[:, 0], seen[:, 2])
    torch.testing.assert_close(grey(seen), seen)
    torch.testing.assert_close(
        grey(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))[0, 0, 0, 0].item(), 0.587
    )


def test_colorization_sees_no_colour_and_draws_with_the_given_brightness() -> None:
    method = colorization(encoder(), Pretraining(loss="l1"), 0)
    method.networks.eval()
    (images,) = batch().views
    networks: Any = method.networks
    with torch.no_grad():
        drawn = networks["decoder"](networks["encoder"].maps(grey(images)))
        expected = drawn - grey(drawn) + grey(images)
        torch.testing.assert_close(grey(expected), grey(images))
        (move,) = method.phases[0].learn(batch())
        torch.testing.assert_close(move.loss, (expected - images).abs().mean())
        recoloured = Batch((grey(images),), batch().labels, 0.0)
        (other,) = method.phases[0].learn(recoloured)
        torch.testing.assert_close(other.loss, (expected - grey(images)).abs().mean())


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.6])
def test_holes_are_squares_of_at_most_the_wanted_area(ratio: float) -> None:
    mask = holes(200, 32, 32, ratio)
    assert mask.shape == (200, 1, 32, 32)
    shares = mask.float().mean(dim=(1, 2, 3))
    side = round(32 * (ratio / 4) ** 0.5)
    assert float(shares.min()) >= side**2 / 32**2
    assert float(shares.max()) <= 4 * side**2 / 32**2
    assert 0.5 * ratio < float(shares.mean()) < 1.1 * ratio


def test_only_what_was_hidden_counts_in_inpainting() -> None:
    method = inpainting(encoder(), Pretraining(mask_ratio=0.5), 0)
    method.networks.eval()
    (images,) = batch().views
    networks: Any = method.networks
    with torch.no_grad():
        torch.manual_seed(1)
        (move,) = method.phases[0].learn(batch())
        torch.manual_seed(1)
        mask = holes(4, 32, 32, 0.5)
        seen = torch.where(mask, images.mean(dim=(2, 3), keepdim=True), images)
        drawn = networks["decoder"](networks["encoder"].maps(seen))
        errors = (drawn - images).square()[mask.expand_as(images)]
        torch.testing.assert_close(move.loss, errors.mean())
        assert move.figures["hidden"] == pytest.approx(float(mask.float().mean()))


@pytest.mark.parametrize(("make", "rows"), [(colorization, 3), (inpainting, 3)])
def test_the_shown_are_rows_of_pictures(make: Any, rows: int) -> None:
    method = make(encoder(), Pretraining(), 0)
    shown = method.show(batch().views[0])
    (drawn,) = shown.values()
    assert drawn.shape == (rows, 4, 3, 32, 32)
