import pytest
import torch

from transferkit.closed_form.left_out import Problem, left_out_scores
from transferkit.closed_form.reweighted import Reweighted
from transferkit.closed_form.ridge import decompose
from transferkit.closed_form.sums import one_hot


@pytest.mark.parametrize("columns", [6, 70])  # fewer and more than pictures
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_are_those_of_a_fit_with_the_weights(columns: int, grouped: bool) -> None:
    generator = torch.Generator().manual_seed(columns)
    features = torch.randn(40, columns, generator=generator).double()
    others = torch.randn(5, columns, generator=generator).double()
    targets = one_hot(torch.arange(40) % 3, 3)
    groups = torch.arange(40) // 3 if grouped else None
    problem, penalty = Problem(features, targets, None, groups), 0.01
    gone = torch.cat([torch.arange(3, 9), torch.arange(30, 33)])
    weights = torch.ones(40)
    weights[gone] = 0
    weights[20:25] = 2.5
    weights[10:12] = 0.5
    rows = (weights != 1).nonzero().flatten()
    solved = Reweighted(decompose(features, targets, ()), problem, penalty, others)
    found = solved.scores(rows, weights[rows])
    kept = (weights > 0).nonzero().flatten()
    given = (weights[kept], None if groups is None else groups[kept])
    fewer = Problem(features[kept], targets[kept], *given)
    spectrum = decompose(fewer.features, fewer.targets, (), weights[kept])
    same = penalty * 40 / float(weights.sum())  # what the penalty adds stays
    torch.testing.assert_close(found[kept], left_out_scores(spectrum, fewer, same))
    torch.testing.assert_close(found[gone], spectrum.predict(features[gone], same))
    torch.testing.assert_close(found[40:], spectrum.predict(others, same))


def test_without_a_change_they_are_the_leave_one_out_scores() -> None:
    features = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).double()
    targets = one_hot(torch.arange(20) % 2, 2)
    problem, spectrum = Problem(features, targets), decompose(features, targets, ())
    nothing = torch.arange(0)
    found = Reweighted(spectrum, problem, 0.1, features[:0]).scores(nothing, nothing.float())
    torch.testing.assert_close(found, left_out_scores(spectrum, problem, 0.1))
