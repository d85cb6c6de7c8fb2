import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve

from transferkit.config import Config, Training
from transferkit.reporting.gather import (
    Picture,
    accuracy_by_coverage,
    changed_options,
    picture_of,
    reliability,
    wilson_interval,
)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (277, 300), (5, 5)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = wilson_interval(right / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_reliability_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random(500)
    right = generator.random(500) < probabilities
    accuracy, confidence = calibration_curve(right, probabilities, n_bins=10)
    found = reliability(probabilities.tolist(), right.tolist())
    assert [a for _, a, _ in found] == pytest.approx(accuracy)
    assert [p for p, _, _ in found] == pytest.approx(confidence)
    assert sum(n for _, _, n in found) == 500
    assert reliability([1.0], [True]) == [(1.0, 1.0, 1)]


def test_accuracy_by_coverage_of_four_pictures() -> None:
    kept, accuracy = accuracy_by_coverage([0.5, 0.9, 0.7, 0.6], [True, True, False, True])
    assert kept == [0.25, 0.5, 0.75, 1.0]
    assert accuracy == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])


def test_a_row_becomes_a_picture() -> None:
    row = {"path": "a.png", "truth": "cat", "label": "dog", "probability": "0.7"}
    picture = picture_of(row | {"label_2": "cat", "probability_2": "0.2"})
    assert picture == Picture("a.png", "cat", (("dog", 0.7), ("cat", 0.2)))
    assert not picture.is_right
    assert picture.lead == pytest.approx(0.5)


def test_only_changed_options_are_listed() -> None:
    assert changed_options(Config()) == []
    changed = changed_options(Config(training=Training(lr=0.5)))
    assert changed == [("training.lr", 0.5, 3e-3)]
