import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from transferkit.evaluation.selective import detection_auroc, risk_coverage


def test_small_case_by_hand():
    curve = risk_coverage([0.1, 0.4, 0.2, 0.3], [True, False, True, False])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.accuracy == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curve.threshold.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert curve.area == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert curve.accuracy_at(0.5) == 1
    assert curve.accuracy_at(0.51) == pytest.approx(2 / 3)


def test_a_threshold_keeps_as_many_as_reach_the_target():
    curve = risk_coverage([0.1, 0.2, 0.3, 0.4], [True, True, True, False])
    assert curve.for_accuracy(0.98) == (0.3, 0.75, 1.0)
    assert curve.for_accuracy(0.75) == (0.4, 1.0, 0.75)
    assert risk_coverage([0.1, 0.2], [False, False]).for_accuracy(0.5) is None


def test_ties_are_kept_or_left_together():
    for correct in ([True, False, True], [True, True, False]):
        curve = risk_coverage([0.1, 0.2, 0.2], correct)
        assert curve.accuracy == pytest.approx([1, 0.75, 2 / 3])
        assert curve.for_accuracy(0.7)[:2] == (0.1, pytest.approx(1 / 3))


def test_detection_equals_scikit_learn_and_is_undefined_for_one_kind():
    rng = np.random.default_rng(0)
    wrong = rng.random(100) < 0.3
    score = rng.random(100) + wrong
    assert detection_auroc(score, wrong) == pytest.approx(roc_auc_score(wrong, score))
    assert detection_auroc([1, 2, 3], [False, False, True]) == 1
    assert np.isnan(detection_auroc([1, 2], [False, False]))


def test_points_reach_both_ends():
    points = risk_coverage(np.arange(1000), np.arange(1000) < 900).points(11)
    assert len(points) == 11
    assert points[0]["coverage"] == pytest.approx(1 / 1000)
    assert points[-1] == {"coverage": 1, "accuracy": 0.9, "threshold": 999}
