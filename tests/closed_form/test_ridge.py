"""The solve against scikit-learn and against fits without the pictures that are left out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from transferkit.closed_form.left_out import (
    PENALTIES,
    Problem,
    left_out_scores,
    solve,
    solve_for,
    squared_errors,
)
from transferkit.closed_form.ridge import Spectrum, decompose, decompose_sums
from transferkit.closed_form.sums import one_hot, sum_up
from transferkit.errors import UserError

WIDTHS = (5, 12)
PENALTY = 0.03


def numbers(count: int, seed: int = 0, size: int = sum(WIDTHS), classes: int = 3) -> Problem:
    """Features of several scales around means far from 0, and one-hot targets that follow them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = torch.randn(count, size, generator=generator)
    features[:, :classes] += 2.0 * one_hot(labels, classes)[:, :size]
    spread = torch.rand(size, generator=generator) * 9 + 0.1
    return Problem(features * spread + 5, one_hot(labels, classes))


def weights(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(5)) + 0.5


def refit(problem: Problem, spectrum: Spectrum, kept: np.ndarray, penalty: float) -> Ridge:
    """Fit scikit-learn's ridge regression to some pictures, by scale and penalty of all of them."""
    given = problem.weights
    w = np.ones(len(problem.targets)) if given is None else given.double().numpy()
    scaled = spectrum.scale.of(problem.features).numpy()
    found = Ridge(alpha=penalty * w.sum(), solver="svd", tol=0)
    return found.fit(scaled[kept], problem.targets.double().numpy()[kept], w[kept])


@pytest.mark.parametrize("count", [11, 60], ids=["n < D", "n > D"])
@pytest.mark.parametrize("weighted", [False, True])
class TestAgainstScikitLearn:
    def problem(self, count: int, weighted: bool) -> Problem:
        found = numbers(count)
        return Problem(found.features, found.targets, weights(count) if weighted else None)

    def test_scores(self, count: int, weighted: bool) -> None:
        problem = self.problem(count, weighted)
        spectrum = decompose(problem.features, problem.targets, WIDTHS, problem.weights)
        scaled = spectrum.scale.of(problem.features).numpy()
        for penalty in (1e-6, PENALTY, 10.0):
            model = refit(problem, spectrum, np.arange(count), penalty)
            found = spectrum.predict(problem.features, penalty).numpy()
            assert np.abs(found - model.predict(scaled)).max() < 1e-6

    def test_linear_layer_takes_features_as_they_are(self, count: int, weighted: bool) -> None:
        problem = self.problem(count, weighted)
        spectrum = decompose(problem.features, problem.targets, WIDTHS, problem.weights)
        weight, bias = spectrum.linear(PENALTY)
        found = problem.features.double() @ weight.T + bias
        assert torch.allclose(found, spectrum.predict(problem.features, PENALTY), atol=1e-10)

    def test_leave_one_out(self, count: int, weighted: bool) -> None:
        problem = self.problem(count, weighted)
        spectrum = decompose(problem.features, problem.targets, WIDTHS, problem.weights)
        scaled = spectrum.scale.of(problem.features).numpy()
        for penalty in (1e-4, PENALTY):
            found = left_out_scores(spectrum, problem, penalty).numpy()
            for i in range(count):
                model = refit(problem, spectrum, np.delete(np.arange(count), i), penalty)
                assert np.abs(found[i] - model.predict(scaled[[i]])[0]).max() < 1e-6

    def test_leave_one_group_out(self, count: int, weighted: bool) -> None:
        one = self.problem(count, weighted)
        groups = torch.tensor([7, 7, 7, 1, 3, 3, 1, 9, 9, 9, 4] + [2] * (count - 11))
        problem = Problem(one.features, one.targets, one.weights, groups)
        spectrum = decompose(problem.features, problem.targets, WIDTHS, problem.weights)
        scaled = spectrum.scale.of(problem.features).numpy()
        found = left_out_scores(spectrum, problem, PENALTY).numpy()
        for group in groups.unique():
            outside = np.flatnonzero(groups.numpy() != int(group))
            inside = np.flatnonzero(groups.numpy() == int(group))
            model = refit(problem, spectrum, outside, PENALTY)
            assert np.abs(found[inside] - model.predict(scaled[inside])).max() < 1e-6


def test_the_penalty_has_the_lowest_left_out_error() -> None:
    problem = numbers(40)
    solution = solve(problem, WIDTHS)
    scores = {p: left_out_scores(solution.spectrum, problem, p) for p in PENALTIES}
    by_hand = {p: float((s - problem.targets).square().sum(1).mean()) for p, s in scores.items()}
    assert solution.penalty == min(by_hand, key=lambda penalty: by_hand[penalty])
    assert PENALTIES[0] < solution.penalty < PENALTIES[-1]
    assert np.allclose(solution.errors, list(by_hand.values()), rtol=1e-9)


def test_a_given_penalty_is_taken() -> None:
    assert solve(numbers(20), WIDTHS, penalty=0.5).penalty == 0.5


def test_both_decompositions_give_the_same() -> None:
    problem = numbers(11)
    few = decompose(problem.features, problem.targets, WIDTHS, weights(11))
    many = decompose_sums(sum_up(problem.features, problem.targets, weights(11)), WIDTHS)
    assert len(few.values) == len(many.values) == 10  # the mean takes one
    for penalty in (1e-6, PENALTY):
        for a, b in zip(few.linear(penalty), many.linear(penalty), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_each_depth_weighs_the_same() -> None:
    problem = numbers(60)
    scaled = decompose(problem.features, problem.targets, WIDTHS).scale.of(problem.features)
    variances = scaled.var(0, unbiased=False).split(list(WIDTHS))
    assert [float(part.sum()) for part in variances] == pytest.approx([1, 1])


@pytest.mark.parametrize("count", [11, 60])
def test_constant_columns_are_left_out(count: int) -> None:
    problem = numbers(count)
    # as float32 rounds what is the same: the last bit differs
    same = 0.1 * (1 + 1e-7 * torch.randn(count, 4, generator=torch.Generator().manual_seed(1)))
    features = torch.cat([problem.features, same], 1)
    found = decompose(features, problem.targets, (*WIDTHS, 4))
    usual = decompose(problem.features, problem.targets, WIDTHS)
    weight, bias = found.linear(PENALTY)
    assert weight[:, -4:].abs().max() == 0
    assert torch.allclose(bias, usual.linear(PENALTY)[1], atol=1e-9)


def test_features_that_are_all_constant_give_the_mean() -> None:
    targets = one_hot([0, 0, 1], 2)
    problem = Problem(torch.ones(3, 4), targets)
    solution = solve(problem, (4,))
    found = solution.spectrum.predict(problem.features, solution.penalty)
    assert torch.allclose(found, torch.tensor([[2 / 3, 1 / 3]]).double().expand(3, 2))
    found = left_out_scores(solution.spectrum, problem, 1.0)
    assert torch.allclose(found[2], torch.tensor([1.0, 0.0]).double())


@pytest.mark.parametrize("count", [11, 60])
def test_features_that_are_not_finite_are_one_clear_error(count: int) -> None:
    problem = numbers(count)
    problem.features[3, 2] = float("nan")
    problem.features[5, 16] = float("inf")
    with pytest.raises(UserError, match=f"2 of {count} pictures are not finite") as raised:
        solve(problem, WIDTHS)
    assert "weights" in raised.value.remedy


def test_one_group_alone_is_refused() -> None:
    problem = numbers(20)
    with pytest.raises(UserError, match="one group"):
        solve(Problem(problem.features, problem.targets, None, torch.zeros(20)), WIDTHS)


def test_one_picture_per_class() -> None:
    problem = numbers(3)
    solution = solve(problem, WIDTHS)
    assert (
        left_out_scores(solution.spectrum, problem, solution.penalty).argmax(1)
        != problem.targets.argmax(1)
    ).all()
    found = solution.spectrum.predict(problem.features, PENALTIES[0])
    assert (found.argmax(1) == problem.targets.argmax(1)).all()


def test_a_thousand_classes() -> None:
    problem = numbers(2000, classes=1000)
    solution = solve(problem, WIDTHS)
    weight, bias = solution.spectrum.linear(solution.penalty)
    assert weight.shape == (1000, 17)
    assert bias.isfinite().all()


def test_numbers_as_targets() -> None:
    features = numbers(60).features
    truth = torch.linspace(-1, 1, 34).view(17, 2)
    problem = Problem(features, features @ truth + 4)
    solution = solve(problem, WIDTHS)
    assert solution.penalty == PENALTIES[0]
    found = solution.spectrum.linear(1e-12)[0]
    assert torch.allclose(found, truth.T.double(), atol=1e-4)


def test_some_pictures_judge_a_regression_on_more() -> None:
    problem = numbers(90)
    sums = sum_up(problem.features, problem.targets)
    some = Problem(problem.features[::3], problem.targets[::3], sums=sums)
    found, wanted = solve(some, WIDTHS, PENALTY), solve(problem, WIDTHS, PENALTY)
    scores = left_out_scores(found.spectrum, some, PENALTY)
    every = left_out_scores(wanted.spectrum, problem, PENALTY)
    assert torch.allclose(scores, every[::3], atol=1e-9)
    by_hand = (every - problem.targets)[::3].square().sum(1).mean()
    assert squared_errors(found.spectrum, some, [PENALTY])[0] == pytest.approx(float(by_hand))


def test_the_penalty_that_other_pictures_prefer() -> None:
    problem, other = numbers(60), numbers(40, seed=3)
    solution = solve_for(problem, WIDTHS, other.features, other.targets)
    scaled = solution.spectrum.scale.of(other.features).numpy()
    errors = []
    for penalty in PENALTIES:
        model = refit(problem, solution.spectrum, np.arange(60), penalty)
        errors.append(((model.predict(scaled) - other.targets.numpy()) ** 2).sum(1).mean())
    np.testing.assert_allclose(solution.errors, errors, rtol=1e-6)
    assert solution.penalty == PENALTIES[int(np.argmin(errors))]
    assert solution.penalty != solve(problem, WIDTHS).penalty
