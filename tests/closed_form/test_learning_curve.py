from dataclasses import replace

import numpy as np
import pytest
import torch

from transferkit.closed_form import learning_curve as module
from transferkit.closed_form.learning_curve import (
    Gain,
    Labelled,
    LearningCurve,
    learning_curve,
    nested_order,
)
from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.sums import one_hot

CLASSES = ("easy", "hard", "harder")


def drawn(per_class: int, seed: int, columns: int = 30) -> Labelled:
    """Three classes, of which the last two are hard to tell apart; a third is validation."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * per_class) % 3
    centres = torch.zeros(3, columns)
    centres[0, 0], centres[1, 1], centres[2, 2] = 8.0, 1.1, 1.1
    features = centres[labels] + torch.randn(len(labels), columns, generator=generator)
    train = torch.arange(len(labels)) % 9 < 6
    return Labelled(features, [columns], labels, train)


def test_the_last_point_is_leave_one_out_with_validation() -> None:
    data = drawn(60, 0)
    found = learning_curve(data, CLASSES)
    assert found is not None
    own = data.train
    targets = one_hot(data.labels[own], 3)
    problem = Problem(data.features[own], targets)
    solution = solve(problem, [30])
    scores = left_out_scores(solution.spectrum, problem, solution.penalty)
    other = solution.spectrum.predict(data.features[~own], solution.penalty)
    wrong = torch.cat([scores, other]).argmax(1) != torch.cat([data.labels[own], data.labels[~own]])
    assert found.judged_on == "all"
    assert found.pictures[-1] == found.all_pictures == 120
    assert found.errors[-1] == pytest.approx(float(wrong.double().mean()), abs=1e-12)
    assert [n for n, *_ in found.forecasts] == [90, 120, 170, 240]
    assert list(found.pictures) == sorted(found.pictures)
    assert found.errors[0] > found.errors[-1]


def test_the_same_seed_gives_the_same_curve() -> None:
    data = drawn(30, 0)
    assert learning_curve(data, CLASSES, 3) == learning_curve(data, CLASSES, 3)
    assert learning_curve(data, CLASSES, 3) != learning_curve(data, CLASSES, 4)


def test_a_class_that_is_always_right_gains_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    features = torch.randn(240, 3, generator=generator) / 10
    features[labels == 0, 0] += 20
    features[labels == 1, 1] += 0.3
    found = learning_curve(Labelled(features, [3], labels, torch.arange(240) < 180), CLASSES)
    assert found is not None
    assert found.classes["easy"][0] == 60
    assert found.classes["easy"][1].verdict == "none"
    assert found.classes["easy"][1].gain < found.classes["hard"][1].high
    assert "`easy` nothing that shows" in found.sentences()[-1]


def test_the_gains_that_are_foretold_come_true() -> None:
    """Of all classes, and of one whose weight stays as it is."""
    held, inside, told, came = drawn(800, 99), 0, [], []

    def error(data: Labelled, rows: torch.Tensor, weights: torch.Tensor | None) -> float:
        problem = Problem(data.features[rows], one_hot(data.labels[rows], 3), weights)
        solution = solve(problem, [30])
        scores = solution.spectrum.predict(held.features, solution.penalty)
        return float((scores.argmax(1) != held.labels).double().mean())

    for seed in range(10):
        few, more = drawn(60, seed), drawn(60, 1000 + seed)
        found = learning_curve(few, CLASSES, seed)
        assert found is not None
        both = Labelled(
            torch.cat([few.features, more.features]), [30], torch.cat([few.labels, more.labels]),
            torch.cat([few.train, more.train]),
        )  # fmt: skip
        first = torch.arange(360) < 180
        one = both.train & (first | (both.labels == 1))
        now = error(both, (both.train & first).nonzero().flatten(), None)
        after = error(both, both.train.nonzero().flatten(), None)
        rows = one.nonzero().flatten()
        of_one = error(both, rows, torch.where(both.labels[rows] == 1, 0.5, 1.0))
        told.append((found.twice.gain, found.classes["hard"][1].gain))
        came.append((now - after, now - of_one))
        inside += found.forecasts[-1][2] <= after <= found.forecasts[-1][3]
    assert inside >= 9
    np.testing.assert_allclose(np.mean(told, axis=0), np.mean(came, axis=0), atol=0.015)
    assert np.mean(came, axis=0).min() > 0


def test_validation_from_elsewhere_judges_alone() -> None:
    data = drawn(60, 0)
    strange = data.features.clone()
    strange[~data.train] = strange[~data.train].roll(1, 0)  # the labels do not fit
    found = learning_curve(replace(data, features=strange), CLASSES)
    assert found is not None
    assert found.judged_on == "validation"
    assert found.errors[-1] > 0.5
    assert "on validation" in found.sentences()[0]


def test_parts_are_nested_stratified_and_whole_groups() -> None:
    labels = torch.tensor([0] * 80 + [1] * 40)
    groups = torch.arange(120) // 4
    rng = np.random.default_rng(0)
    order = nested_order(labels, groups, rng)
    assert order.min() >= 0
    assert order.max() < 1
    for share in (0.25, 0.5, 0.75):
        part = order < share
        assert all(len(set(part[groups == g])) == 1 for g in range(30))
        assert part[:80].sum() == pytest.approx(80 * share, abs=4)
        assert part[80:].sum() == pytest.approx(40 * share, abs=4)
    alone = nested_order(labels, None, rng)
    assert (alone < 0.5).sum() == pytest.approx(60, abs=1)


def test_copies_are_seen_through_when_they_are_groups() -> None:
    data = drawn(30, 2)
    twice = Labelled(data.features.repeat(2, 1), [30], data.labels.repeat(2), data.train.repeat(2))
    groups = torch.arange(90).repeat(2)
    alone, found = (
        learning_curve(twice, CLASSES),
        learning_curve(replace(twice, groups=groups), CLASSES),
    )
    assert alone is not None
    assert found is not None
    assert found.errors[-1] > alone.errors[-1] + 0.05


def test_of_many_pictures_some_are_solved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SOLVED", 60)
    found = learning_curve(drawn(90, 0), CLASSES)
    assert found is not None
    assert found.pictures[-1] == pytest.approx(60, abs=2)
    assert found.all_pictures == 180
    assert [n for n, *_ in found.forecasts][-3:] == [180, 255, 360]


def test_too_few_pictures_give_no_curve() -> None:
    assert learning_curve(drawn(9, 0), CLASSES) is None


def test_what_is_said() -> None:
    classes = {"a": (20, Gain(0.02, 0.01, 0.03)), "b": (9, Gain(0.0, 0.0, 0.001))}
    classes["c"] = (30, Gain(0.01, 0.0, 0.02))
    found = LearningCurve(
        (50, 100), (0.2, 0.1), 100, "all", ((200, 0.08, 0.07, 0.1),),
        Gain(0.018, 0.009, 0.026), classes, Gain(0.02, 0.01, 0.03),
    )  # fmt: skip
    assert found.sentences() == [
        "a solve on 100 training pictures has accuracy 90.0% on pictures it has not seen; "
        "with 200 about +1.8 points (0.9–2.6)",
        "with twice the pictures of `a` about +2.0 points (1.0–3.0)",
        "with twice the pictures of `b` nothing that shows",
    ]
    assert found.to_dict()["classes"]["c"]["verdict"] == "unclear"
