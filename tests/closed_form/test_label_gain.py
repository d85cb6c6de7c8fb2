import torch

from transferkit.closed_form.label_gain import LabelGain
from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.ridge import Spectrum, decompose
from transferkit.closed_form.sums import one_hot


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def refitted(
    before: Spectrum, features: torch.Tensor, targets: torch.Tensor, ridge: float
) -> float:
    """Mean squared leave-one-out error of the first rows of a fit on all, in the old scale."""
    scaled = before.scale.of(features)
    after = decompose(scaled, targets, ())
    scores = left_out_scores(after, Problem(scaled, targets), ridge / len(features))
    return float((scores - targets)[:-1].square().sum(1).mean())


def test_the_expected_error_is_that_of_fitting_again_with_each_label() -> None:
    for columns in (7, 90):  # fewer and more than pictures
        features, labels = drawn(40, columns, 1), torch.arange(40) % 3
        features[:, 0] += labels
        targets = one_hot(labels, 3).double()
        candidates = drawn(4, columns, 2)
        chances = torch.softmax(drawn(4, 3, 3).double(), 1)
        solution = solve(Problem(features, targets), [columns])
        before = left_out_scores(solution.spectrum, Problem(features, targets), solution.penalty)
        now = float((before - targets).square().sum(1).mean())
        found = LabelGain(features, targets, [columns]).of(candidates, chances)
        for row in range(4):
            more = torch.cat([features, candidates[row : row + 1]])
            after = 0.0
            for k in range(3):
                labelled = torch.cat([targets, torch.eye(3).double()[k : k + 1]])
                error = refitted(solution.spectrum, more, labelled, solution.penalty * 40)
                after += float(chances[row, k]) * error
            torch.testing.assert_close(float(found[row]), now - after, rtol=1e-6, atol=1e-10)
