import pytest
import torch

from transferkit.closed_form.left_out import Problem, left_out_scores
from transferkit.closed_form.ridge import decompose
from transferkit.closed_form.sums import one_hot
from transferkit.closed_form.thinned import Thinned


@pytest.mark.parametrize("columns", [6, 70])  # fewer and more than pictures
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_without_some_pictures_are_those_of_a_fit_without_them(
    columns: int, grouped: bool
) -> None:
    generator = torch.Generator().manual_seed(columns)
    features = torch.randn(40, columns, generator=generator).double()
    others = torch.randn(5, columns, generator=generator).double()
    targets = one_hot(torch.arange(40) % 3, 3)
    groups = torch.arange(40) // 3 if grouped else None
    problem, penalty = Problem(features, targets, None, groups), 0.01
    removed = torch.cat([torch.arange(3, 9), torch.arange(30, 33)])
    kept = torch.tensor([row for row in range(40) if row not in removed])
    found = Thinned(decompose(features, targets, ()), problem, penalty, others).scores(removed)
    fewer = Problem(features[kept], targets[kept], None, None if groups is None else groups[kept])
    spectrum = decompose(fewer.features, fewer.targets, ())
    same = penalty * 40 / len(kept)  # the sum that the penalty adds stays
    torch.testing.assert_close(found[kept], left_out_scores(spectrum, fewer, same))
    torch.testing.assert_close(found[removed], spectrum.predict(features[removed], same))
    torch.testing.assert_close(found[40:], spectrum.predict(others, same))


def test_without_nothing_are_the_leave_one_out_scores() -> None:
    features = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).double()
    targets = one_hot(torch.arange(20) % 2, 2)
    problem, spectrum = Problem(features, targets), decompose(features, targets, ())
    found = Thinned(spectrum, problem, 0.1, features[:0]).scores(torch.arange(0))
    torch.testing.assert_close(found, left_out_scores(spectrum, problem, 0.1))
