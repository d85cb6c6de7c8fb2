import pytest
import torch

from transferkit.closed_form.label_gain import LabelGain
from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.ridge import decompose
from transferkit.closed_form.sums import one_hot


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [7, 90])  # fewer and more than pictures
def test_the_expected_change_is_that_of_fitting_again_with_each_label(columns: int) -> None:
    features, labels = drawn(40, columns, 1), torch.arange(40) % 3
    features[:, 0] += labels
    targets = one_hot(labels, 3).double()
    candidates, others = drawn(4, columns, 2), drawn(6, columns, 4)
    chances = torch.softmax(drawn(4, 3, 3).double(), 1)
    solution = solve(Problem(features, targets), [columns])
    scale, noise = solution.spectrum.scale, solution.penalty * 40
    before = solution.spectrum.predict(others, solution.penalty)
    gain = LabelGain(features, targets, [columns])
    found = gain.surprise(candidates, chances) * gain.change(candidates, others)
    for row in range(4):
        more = scale.of(torch.cat([features, candidates[row : row + 1]]))
        expected = 0.0
        for k in range(3):
            labelled = torch.cat([targets, torch.eye(3).double()[k : k + 1]])
            after = decompose(more, labelled, ()).predict(scale.of(others), noise / 41)
            expected += float(chances[row, k] * (after - before).square().sum(1).mean())
        torch.testing.assert_close(float(found[row]), expected)


def test_a_label_near_nothing_that_is_asked_changes_nothing() -> None:
    features, labels = drawn(60, 4, 1), torch.arange(60) % 2
    features[:, 0] += 4 * labels
    gain = LabelGain(features, one_hot(labels, 2), [4])
    between, beside = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[2.0, 0, 30, 0]])
    even = torch.tensor([[0.5, 0.5]])
    certain = torch.tensor([[1.0, 0.0]])
    assert gain.surprise(between, even) > gain.surprise(features[:1], certain)
    assert gain.change(between, between) > gain.change(beside, between)
