import pytest
from scipy.stats import binomtest

from transferkit.config import Config, Training
from transferkit.reporting.gather import (
    Picture,
    changed_options,
    picture_of,
    wilson_interval,
    with_gradients,
)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (277, 300), (5, 5)])
def test_the_interval_is_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = wilson_interval(right / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_a_row_becomes_a_picture() -> None:
    row = {"path": "a.png", "truth": "cat", "label": "dog", "probability": "0.7"}
    picture = picture_of(row | {"label_2": "cat", "probability_2": "0.2"})
    assert picture == Picture("a.png", "cat", (("dog", 0.7), ("cat", 0.2)))
    assert not picture.is_right
    assert picture.margin == pytest.approx(0.5)


def test_only_changed_options_are_listed() -> None:
    assert changed_options(Config()) == []
    changed = changed_options(Config(training=Training(lr=0.5)))
    assert changed == [("training.lr", 0.5, 3e-3)]


def test_gradient_norms_join_the_row_of_their_epoch() -> None:
    rows = [{"stage": 0, "epoch": 1, "lr/head": 1.0}, {"stage": 1, "epoch": 1}]
    monitored = [
        {"stage": 0, "epoch": 1, "group": "head", "gradient_norm": 0.5},
        {"stage": 1, "epoch": 1, "group": "head", "gradient_norm": 0.25},
        {"stage": 1, "epoch": 1, "group": "blocks.6", "gradient_norm": ""},
    ]
    assert with_gradients(rows, monitored) == (
        {**rows[0], "grad_norm/head": 0.5},
        {**rows[1], "grad_norm/head": 0.25},
    )
    assert rows[1] == {"stage": 1, "epoch": 1}
