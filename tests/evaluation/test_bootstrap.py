import numpy as np
import pytest

from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.metrics import evaluate_logits


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    logits = rng.normal(size=(count, 4)) + 1.2 * np.eye(4)[labels]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), labels


def test_width_is_that_of_the_binomial():
    logs, labels = draw(400)
    accuracy = evaluate_logits(logs, labels, "abcd").accuracy
    low, high = bootstrap_intervals(logs, labels)["accuracy"]
    assert low < accuracy < high
    expected = 2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 400)
    assert high - low == pytest.approx(expected, rel=0.12)


def test_every_interval_holds_its_figure_and_narrows_with_more_pictures():
    few, many = (bootstrap_intervals(*draw(n), resamples=300) for n in (100, 1600))
    figures = evaluate_logits(*draw(100), "abcd").headline
    for name, (low, high) in few.items():
        assert low <= figures[name] <= high
        assert many[name][1] - many[name][0] < 0.5 * (high - low)


def test_the_seed_decides():
    logs, labels = draw(50)
    one, same, other = (bootstrap_intervals(logs, labels, resamples=50, seed=s) for s in (1, 1, 2))
    assert one == same != other
