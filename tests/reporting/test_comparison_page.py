from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.config import Training
from transferkit.evaluation.bootstrap import paired_difference
from transferkit.evaluation.comparison import Comparison, differing, outcome, stages_of
from transferkit.reporting.comparison_page import (
    class_rows,
    comparison_page,
    differences,
    figure_cells,
    shared_pictures,
)
from transferkit.reporting.gather import Picture, RunData

EVIL = "</script><script>alert('x')</script>"


@pytest.fixture
def runs(tmp_path: Path, make_run: Callable[..., RunData]) -> list[RunData]:
    """Two runs on the same four pictures; the second takes the last one for a cat, rightly."""
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    first = make_run(tmp_path)
    assert first.config is not None
    last = replace(first.pictures[-1], answers=(("cat", 0.7), (EVIL, 0.3)))
    config = replace(first.config, training=Training(lr=0.5))
    second = replace(first, pictures=(*first.pictures[:-1], last), config=config)
    return [first, second]


def page_of(runs: list[RunData]) -> str:
    summaries = [run.summary for run in runs]
    configs = [run.config for run in runs if run.config is not None]
    names = (EVIL, "second")
    found = Comparison(names, outcome(summaries), stages_of(summaries), differing(configs))
    return comparison_page(runs, found, [{"accuracy": (0.25, 1.0)}, {}])


def test_the_page_shows_what_differs_and_keeps_names_text(runs: list[RunData]) -> None:
    page = page_of(runs)
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<script>") == 1  # its own
    assert "training.lr" in page
    assert "1 of 4 pictures are not predicted alike" in page
    assert "25.0% to 100.0%" in page
    assert "+25.0" in page


def test_pictures_are_shared_by_path_and_truth(runs: list[RunData]) -> None:
    assert len(shared_pictures(runs)) == 4
    fewer = replace(runs[1], pictures=runs[1].pictures[1:])
    assert [p[0].path for p in shared_pictures([runs[0], fewer])] == [
        p.path for p in runs[0].pictures[1:]
    ]
    other = replace(runs[1], description={**runs[1].description, "classes": ["cat", "dog"]})
    assert shared_pictures([runs[0], other]) == []


def test_the_difference_is_of_pairs() -> None:
    first = np.array([True, False] * 50)
    assert paired_difference(first, first) == (0, 0, 0)
    assert paired_difference(first, np.ones(100, bool))[0] == pytest.approx(0.5)
    mean, low, high = paired_difference(first, ~first)
    assert (mean, low < 0 < high) == (0, True)
    # of N gains of -1, 0, 1 the mean's standard error is known
    generator = np.random.default_rng(0)
    one, two = generator.random((2, 400)) < [[0.6], [0.7]]
    mean, low, high = paired_difference(one, two, resamples=20_000)
    error = (two.astype(float) - one).std() / np.sqrt(400)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.005)


def test_against_the_first(runs: list[RunData]) -> None:
    none, found = differences(shared_pictures(runs), 2)
    assert none is None
    assert found is not None
    assert found[0] == pytest.approx(0.25)
    assert differences([], 2) == []


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy() -> None:
    def best(name: str, *values: float | None) -> list[bool]:
        return [cell.is_best for cell in figure_cells(name, values, [{}] * len(values))]

    assert best("accuracy", 0.5, 0.75, None) == [False, True, False]
    assert best("log_loss", 0.5, 0.75, None) == [True, False, False]
    assert best("accuracy", 0.5, 0.5) == [False, False]
    assert best("epochs", 5, 7) == [False, False]


def test_classes_that_one_run_lacks_have_a_gap(runs: list[RunData]) -> None:
    dog = Picture("d.png", "dog", (("dog", 1.0),))
    classes = {**runs[1].description, "classes": ["cat", "dog"]}
    other = replace(runs[1], description=classes, pictures=(dog,))
    rows = {row.name: row for row in class_rows([runs[0], other])}
    assert rows["dog"].recalls == (None, 1.0)
    assert rows["cat"].recalls[1] is None
    assert rows["dog"].spread == 0
