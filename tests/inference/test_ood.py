import numpy as np
import pytest
from scipy.spatial.distance import cdist

from transferkit.inference.ood import METHODS, fit_ood_score, knn_score, mahalanobis_score


def draw(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = rng.normal(size=(count, 8)) + 4 * np.eye(8)[labels] + shift * np.eye(8)[7]
    return features, 2 * features[:, :3] * (shift == 0), labels


@pytest.mark.parametrize("method", METHODS)
def test_scale_false_alarms_and_detection(method: str) -> None:
    train, val, new = draw(600, 0), draw(500, 1), draw(500, 2)
    foreign = draw(200, 3, shift=12)
    unlike = fit_ood_score(method, (train[0], train[2]), val[:2])
    own = unlike(*new[:2])
    assert np.median(own) == pytest.approx(0, abs=0.1)
    assert (own > 1).mean() < 0.04
    assert (unlike(*val[:2]) > 1).mean() <= 0.01
    assert (unlike(*foreign[:2]) > 1).mean() > 0.8


def test_knn_is_the_distance_to_the_tenth_neighbour() -> None:
    train, new = draw(50, 0)[0], draw(7, 1)[0]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (new, train)]
    expected = np.sort(cdist(*unit), axis=1)[:, 9]
    score = knn_score(train, np.zeros(50, dtype=np.int64))
    np.testing.assert_allclose(score(new, new), expected, rtol=1e-4)


def test_mahalanobis_equals_scipy() -> None:
    from sklearn.covariance import LedoitWolf

    train, _, labels = draw(90, 0)
    new = draw(5, 1)[0]
    means = np.stack([train[labels == k].mean(0) for k in range(3)])
    covariance = LedoitWolf(assume_centered=True).fit(train - means[labels]).covariance_
    expected = cdist(new, means, "mahalanobis", VI=np.linalg.inv(covariance)).min(axis=1)
    np.testing.assert_allclose(mahalanobis_score(train, labels)(new, new), expected, rtol=1e-6)
