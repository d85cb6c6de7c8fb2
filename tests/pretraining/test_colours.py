import numpy as np
import pytest
import torch

import transferkit.timm_import  # noqa: F401  # isort: skip
from torchvision.transforms.v2 import functional as reference

from transferkit.pretraining.colours import (
    HUE,
    LUMA,
    STRENGTH,
    UNCHANGED,
    drawn_colours,
    hue_rotations,
    recoloured,
)


def images(low: float = 0.35, high: float = 0.5) -> torch.Tensor:
    """Of a range that the factors tried here do not leave."""
    torch.manual_seed(0)
    made = low + (high - low) * torch.rand(4, 3, 9, 7)
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("entry", "adjust"),
    [(0, "adjust_brightness"), (1, "adjust_contrast"), (2, "adjust_saturation")],
)
def test_each_factor_means_what_it_means_to_torchvision(entry: int, adjust: str) -> None:
    seen = images()
    factors = torch.tensor([0.6, 0.9, 1.1, 1.4])
    colours = torch.tensor(UNCHANGED).repeat(4, 1)
    colours[:, entry] = factors
    pairs = zip(seen, factors, strict=True)
    expected = torch.stack([getattr(reference, adjust)(one, float(f)) for one, f in pairs])
    # torchvision rounds two of the luma's weights to four digits
    torch.testing.assert_close(recoloured(seen, colours), expected, atol=2e-4, rtol=0)


def test_all_factors_together_are_the_steps_one_after_another() -> None:
    seen = images()
    colours = torch.tensor([[1.2, 0.7, 1.3, 0.07, 0.0]]).repeat(4, 1)
    step = seen
    for entry in range(4):
        one = torch.tensor(UNCHANGED).repeat(4, 1)
        one[:, entry] = colours[:, entry]
        step = recoloured(step, one)
    torch.testing.assert_close(recoloured(seen, colours), step, atol=1e-6, rtol=0)


def test_a_picture_can_turn_grey_as_torchvision_does_it() -> None:
    seen = images(0, 1)
    colours = torch.tensor(UNCHANGED).repeat(4, 1)
    colours[:, 4] = 1
    expected = reference.rgb_to_grayscale(seen, num_output_channels=3)
    torch.testing.assert_close(recoloured(seen, colours), expected, atol=2e-4, rtol=0)


def test_turning_the_hue_keeps_greys_and_brightness_and_comes_round() -> None:
    turns = hue_rotations(torch.full((1,), 1 / 3, dtype=torch.float64))[0]
    torch.testing.assert_close(torch.linalg.matrix_power(turns, 3), torch.eye(3).double())
    torch.testing.assert_close(turns @ torch.ones(3).double(), torch.ones(3).double())
    luma = torch.tensor(LUMA).double()
    torch.testing.assert_close(luma @ turns, luma)
    red = turns @ torch.tensor([1.0, 0.0, 0.0]).double()
    assert red.argmax() == 1  # a third of a circle from red is green


def test_unchanged_colours_are_the_same_numbers_in_the_same_layout() -> None:
    seen = images(0, 1)
    found = recoloured(seen, torch.tensor(UNCHANGED).repeat(4, 1))
    torch.testing.assert_close(found, seen, atol=1e-6, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_colours_are_drawn_within_their_limits_and_often_enough() -> None:
    drawn = np.stack([drawn_colours(np.random.default_rng(i)) for i in range(2000)])
    changed = (drawn[:, :4] != UNCHANGED[:4]).all(axis=1)
    assert 0.77 < changed.mean() < 0.83
    assert 0.17 < drawn[:, 4].mean() < 0.23
    assert np.abs(drawn[:, :3] - 1).max() == pytest.approx(STRENGTH, abs=0.01)
    assert np.abs(drawn[:, 3]).max() == pytest.approx(HUE, abs=0.005)
