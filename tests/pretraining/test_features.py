import numpy as np
import pytest
from numpy.typing import NDArray

from transferkit.pretraining.features import (
    collapse_warning,
    effective_rank,
    feature_spread,
    knn_accuracy,
    linear_accuracy,
)

Floats = NDArray[np.float64]


def random(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def test_spread_is_one_for_isotropic_and_zero_for_constant_features() -> None:
    assert feature_spread(random((4000, 64))) == pytest.approx(1, abs=0.02)
    assert feature_spread(np.ones((50, 8))) == pytest.approx(0, abs=1e-12)
    assert feature_spread(5 * random((100, 8))) == pytest.approx(feature_spread(random((100, 8))))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_counts_the_directions_of_equal_variation(rank: int) -> None:
    basis = np.linalg.qr(random((16, 16)))[0][:rank]
    scores = np.linalg.qr(random((200, rank + 1), 1) - random((200, rank + 1), 1).mean(axis=0))[0]
    features = (scores[:, :rank] - scores[:, :rank].mean(axis=0)) @ basis
    assert effective_rank(features) == pytest.approx(rank, rel=0.01)
    assert effective_rank(np.ones((10, 4))) == 0


def test_rank_follows_the_entropy_of_the_singular_values() -> None:
    centred = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
    shares = np.array([2 / 3, 1 / 3])  # singular values √2 and √0.5
    assert effective_rank(centred) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_only_collapsed_features_are_warned_of() -> None:
    assert collapse_warning(0.2, 12) == ""
    assert "collapsing" in collapse_warning(0.001, 12)
    assert "--batch-size" in collapse_warning(0.2, 1.0)


def test_probes_name_classes_that_lie_apart_and_guess_where_nothing_is_to_see() -> None:
    labels = np.arange(300) % 3
    apart = random((300, 8)) + 6 * np.eye(8)[labels]
    noise = random((300, 8), 2)
    parts = (apart[:200], labels[:200], apart[200:], labels[200:])
    assert knn_accuracy(*parts) > 0.97
    assert linear_accuracy(*parts, seed=0) > 0.97
    parts = (noise[:200], labels[:200], noise[200:], labels[200:])
    assert knn_accuracy(*parts) < 0.55
    assert linear_accuracy(*parts, seed=0) < 0.55
