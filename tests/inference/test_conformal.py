import numpy as np
import pytest

from transferkit.inference.calibration import softmax
from transferkit.inference.conformal import METHODS, conformal_quantile, fit_sets


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure, and labels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(4000, 6))
    labels = np.array([rng.choice(6, p=row) for row in softmax(logits, 1.8)])
    return softmax(logits), labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wanted", [0.8, 0.9])
def test_empirical_coverage_over_200_splits(world, method: str, wanted: float) -> None:
    probabilities, labels = world
    rng = np.random.default_rng(1)
    held = []
    for split in range(200):
        order = rng.permutation(4000)
        fit, new = order[:500], order[500:1500]
        sets = fit_sets(method, probabilities[fit], labels[fit], wanted, seed=split)
        inside = sets.contain(probabilities[new], rng.random(1000))
        held.append(inside[np.arange(1000), labels[new]].mean())
    assert np.mean(held) == pytest.approx(wanted, abs=0.02)


def test_class_conditional_sets_cover_every_class(world) -> None:
    probabilities, labels = world
    skewed = probabilities.copy()
    skewed[:, 0] *= 0.3  # class 0 is found too seldom
    skewed /= skewed.sum(axis=1, keepdims=True)
    fit, new = slice(0, 2000), slice(2000, 4000)
    coverage = {}
    for method in ("lac", "class"):
        sets = fit_sets(method, skewed[fit], labels[fit], 0.9)
        inside = sets.contain(skewed[new], np.zeros(2000))
        own = labels[new] == 0
        coverage[method] = inside[own, 0].mean()
    assert coverage["lac"] < 0.8
    assert coverage["class"] == pytest.approx(0.9, abs=0.05)


def test_quantile_by_hand() -> None:
    scores = np.arange(1.0, 10)  # ceil(10 * 0.9) = 9th of 9
    assert conformal_quantile(scores, 0.9) == 9
    assert conformal_quantile(scores, 0.8) == 8
    assert conformal_quantile(scores, 0.95) == np.inf  # nine pictures cannot promise that


def test_higher_coverage_gives_larger_sets(world) -> None:
    probabilities, labels = world
    sizes = [
        fit_sets("aps", probabilities, labels, c).contain(probabilities, np.full(4000, 0.5)).sum()
        for c in (0.7, 0.9, 0.99)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_adaptive_scores_by_hand() -> None:
    p = np.array([[0.5, 0.2, 0.3]])
    assert METHODS["aps"](p, np.array([0.5]))[0] == pytest.approx([0.25, 0.9, 0.65])
    assert METHODS["raps"](p, np.array([0.5]))[0] == pytest.approx([0.25, 1.0, 0.65])
