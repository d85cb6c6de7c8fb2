"""Pictures that are nearly the same: which these are, and what they hide."""

import pytest
import torch

from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.similar import Similar, similar_groups, what_similar_hide
from transferkit.closed_form.sums import one_hot

WIDTHS = (64, 192)


def bursts(copies: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features, labels and true groups of 40 scenes of four classes, each seen so often."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(40, 256, generator=generator)
    labels = torch.arange(40) % 4
    scenes[:, :4] += 0.8 * torch.nn.functional.one_hot(labels, 4)
    scene = torch.arange(40).repeat_interleave(copies)
    features = scenes[scene] + 0.2 * torch.randn(len(scene), 256, generator=generator)
    return features, labels[scene], scene


def test_the_pictures_of_a_scene_are_found_and_no_others() -> None:
    features, labels, scene = bursts(5)
    groups = similar_groups(features, WIDTHS, labels)
    assert len(groups.unique()) == 40
    assert len(torch.stack([groups, scene]).unique(dim=1).T) == 40
    lone = similar_groups(*(bursts(1)[0], WIDTHS, bursts(1)[1]))
    assert len(lone.unique()) >= 38


def test_a_depth_of_few_columns_weighs_as_much_as_one_of_many() -> None:
    features, labels, _ = bursts(5)
    scaled = features * torch.cat([torch.full((64,), 100.0), torch.full((192,), 0.01)])
    groups = [similar_groups(each, WIDTHS, labels) for each in (features, scaled)]
    assert torch.equal(*groups)


def test_what_they_hide_is_the_difference_to_leaving_groups_out() -> None:
    features, labels, scene = bursts(5)
    problem = Problem(features, one_hot(labels, 4))
    solution = solve(problem, WIDTHS)
    left_out = left_out_scores(solution.spectrum, problem, solution.penalty)
    found = what_similar_hide(problem, WIDTHS, labels, solution, left_out)
    assert found is not None
    assert (found.groups, found.in_groups) == (40, 200)
    assert found.by_picture == pytest.approx(1.0)
    # independent: another solve without each scene, at the same penalty and scale
    right = []
    scaled = solution.spectrum.scale.of(features)
    for left in range(40):
        kept = scene != left
        rest, targets = scaled[kept], one_hot(labels, 4)[kept].double()
        center, mean = rest.mean(0), targets.mean(0)
        matrix = (rest - center).T @ (rest - center)
        matrix += solution.penalty * 200 * torch.eye(256).double()
        weight = torch.linalg.solve(matrix, (rest - center).T @ (targets - mean))
        right += (((scaled[~kept] - center) @ weight + mean).argmax(1) == labels[~kept]).tolist()
    assert found.by_group == pytest.approx(sum(right) / 200, abs=1e-9)
    assert found.by_group < 0.9


def hidden(problem: Problem, labels: torch.Tensor) -> Similar | None:
    solution = solve(problem, WIDTHS)
    left_out = left_out_scores(solution.spectrum, problem, solution.penalty)
    return what_similar_hide(problem, WIDTHS, labels, solution, left_out)


def test_nothing_is_said_of_different_pictures_or_of_known_groups() -> None:
    features, labels, _ = bursts(1)
    problem = Problem(features, one_hot(labels, 4))
    assert hidden(problem, labels) is None
    features, labels, scene = bursts(5)
    problem = Problem(features, one_hot(labels, 4), groups=scene)
    assert hidden(problem, labels) is None
