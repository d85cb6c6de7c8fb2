"""Which candidate is taken, and how sure its figures are."""

import math

import pytest
import torch
from torch import Tensor

from transferkit.closed_form.judge import (
    accuracy_interval,
    disagree,
    fit_temperature,
    gain_of,
    judge,
    log_losses,
    misses,
    squared,
)


def wrong(*places: int) -> Tensor:
    """Losses of 100 pictures, 1 at these places."""
    losses = torch.zeros(100).double()
    losses[list(places)] = 1
    return losses


def test_a_richer_candidate_must_be_better_by_more_than_its_error() -> None:
    simple = wrong(*range(20))
    slightly = wrong(*range(2, 21))  # gains two pictures, loses one
    gain, error = gain_of(slightly, simple)
    assert (gain, error) == pytest.approx((0.01, 0.01738), abs=1e-5)
    assert judge([simple, slightly]).chosen == 0
    better = judge([simple, wrong(*range(4, 20))])
    assert better.chosen == 1
    assert better.gain == pytest.approx(0.04)
    assert better.losses == pytest.approx((0.2, 0.16))


def test_the_third_is_compared_with_the_second_once_that_is_chosen() -> None:
    simple, better = wrong(*range(20)), wrong(*range(10, 20))
    slightly = wrong(*range(12, 21))  # than the second
    assert judge([simple, better, slightly]).chosen == 1
    assert judge([simple, simple, slightly]).chosen == 2


def test_one_picture_decides_nothing() -> None:
    assert judge([torch.ones(1), torch.zeros(1)]).chosen == 0


def test_losses() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
    labels = torch.tensor([0, 0])
    assert misses(scores, labels).tolist() == [0, 1]
    assert squared(scores, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == pytest.approx(
        [0.02, 1.28]
    )
    expected = -math.log(1 / (1 + math.exp(6)))
    assert float(log_losses(scores, labels, 0.1)[1]) == pytest.approx(expected)


def test_temperature_gives_back_the_one_that_labels_were_drawn_with() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, 3, generator=generator).double()
    probabilities = torch.softmax(scores / 0.15, 1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert fit_temperature(scores, labels) == pytest.approx(0.15, rel=0.03)


def test_temperature_where_every_picture_is_right_stays_finite() -> None:
    scores = torch.eye(2).double().repeat(10, 1)
    found = fit_temperature(scores, torch.arange(20) % 2)
    # the share of one in 22, half of it for either class, is the doubt that remains
    assert 1 / (1 + math.exp(-1 / found)) == pytest.approx(1 - 0.5 / 22, abs=1e-4)


def test_interval_is_wilsons() -> None:
    low, high = accuracy_interval(wrong(*range(20)))
    assert (low, high) == pytest.approx((0.7112, 0.8666), abs=1e-4)  # of 80 in 100, as published
    low, high = accuracy_interval(torch.zeros(10))
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_pictures_that_are_right_or_wrong_together_count_once() -> None:
    once = wrong(*range(20))
    groups = torch.arange(100).repeat_interleave(5)
    repeated = accuracy_interval(once.repeat_interleave(5), groups)
    assert repeated == pytest.approx(accuracy_interval(once))
    alone = accuracy_interval(once, torch.arange(100))
    assert alone == pytest.approx(accuracy_interval(once))
    others = wrong(*range(35)).repeat_interleave(5)
    assert disagree(once.repeat_interleave(5), others)
    assert not disagree(
        once.repeat_interleave(5), wrong(*range(30)).repeat_interleave(5), (groups,) * 2
    )


def test_sets_disagree_beyond_their_errors_only() -> None:
    assert disagree(wrong(*range(2)), wrong(*range(30)))
    assert not disagree(wrong(*range(20)), wrong(*range(26)))
    assert not disagree(wrong(), wrong())
