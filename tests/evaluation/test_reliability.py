import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from transferkit.evaluation.reliability import calibration_error, reliability_bins


def draw(count=400, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, count)
    return confidence, rng.random(count) < confidence**2  # too sure


@pytest.mark.parametrize(("strategy", "theirs"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_equal_scikit_learns_calibration_curve(strategy, theirs):
    confidence, correct = draw()
    bins = [b for b in reliability_bins(confidence, correct, strategy, 10) if b.count]
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy=theirs)
    np.testing.assert_allclose([b.confidence for b in bins], mean)
    np.testing.assert_allclose([b.accuracy for b in bins], accuracy)
    weights = np.array([b.count for b in bins]) / len(correct)
    assert calibration_error(bins) == pytest.approx(weights @ np.abs(accuracy - mean))


def test_small_case_by_hand():
    # (0.5, 1]: three pictures, confidence 0.8 on average, 1 of 3 right; (0, 0.5]: one, wrong
    bins = reliability_bins([0.7, 0.8, 0.9, 0.5], [1, 0, 0, 0], bins=2)
    assert [(b.low, b.high, b.count) for b in bins] == [(0, 0.5, 1), (0.5, 1, 3)]
    assert calibration_error(bins) == pytest.approx((0.5 + 3 * (0.8 - 1 / 3)) / 4)


def test_perfect_and_worst():
    assert calibration_error(reliability_bins([1.0] * 9, [True] * 9)) == 0
    assert calibration_error(reliability_bins([1.0] * 9, [False] * 9)) == 1


def test_equal_mass_bins_hold_equally_many():
    confidence, correct = draw(47)
    assert sorted({b.count for b in reliability_bins(confidence, correct, "mass", 15)}) == [3, 4]
    assert len(reliability_bins(confidence[:4], correct[:4], "mass", 15)) == 4


def test_empty_bins_are_nan_and_do_not_count():
    bins = reliability_bins([0.95], [True], bins=10)
    assert [b.count for b in bins] == [0] * 9 + [1]
    assert np.isnan(bins[0].accuracy)
    assert calibration_error(bins) == pytest.approx(0.05)
