"""A solve averaged with a trained head: what is mixed, by which rule, and when not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from transferkit.closed_form.judge import fit_temperature
from transferkit.runs.folder import open_run
from transferkit.training import solving
from transferkit.training.blending import SHARES, blend_

Ran = Callable[..., Path]


def heads(seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(seed)
    solved = nn.Sequential(nn.Dropout(0.2), nn.Linear(7, 3)).eval()
    trained = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 3)).eval()
    return solved, trained


def held_out() -> tuple[Tensor, Tensor]:
    """Features (60, 7) whose first three and last four columns each tell a part of the labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    features = torch.randn((60, 7), generator=generator)
    features[:, :3] += torch.eye(3)[labels]
    features[:, 3:6] += torch.eye(3)[labels]
    return features, labels


def by_loss(labels: Tensor) -> Callable[[Tensor], tuple[float, float]]:
    return lambda logits: (0.0, -float(cross_entropy(logits, labels)))


def telling(solved: nn.Sequential, trained: nn.Sequential) -> None:
    """Let one head look at the first columns and the other at the next ones."""
    with torch.no_grad():
        for head in (solved, trained):
            layer = head[1]
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
            layer.weight[:, :3] = torch.eye(3)


def test_the_average_is_that_of_the_logits_at_the_share_that_ranks_highest() -> None:
    (solved, trained), (features, labels) = heads(), held_out()
    telling(solved, trained)
    with torch.no_grad():
        ours, theirs = solved(features), trained(features[:, 3:])
        ours, theirs = (each / fit_temperature(each, labels) for each in (ours, theirs))
        mixed = [(1 - share) * ours + share * theirs for share in SHARES]
        losses = [float(cross_entropy(each, labels)) for each in mixed]
        share = blend_(solved, trained, features, labels, by_loss(labels))
        assert share == SHARES[losses.index(min(losses))]
        assert 0.2 <= share <= 0.8  # each knows what the other does not
        torch.testing.assert_close(solved(features), mixed[SHARES.index(share)])


def test_a_trained_head_that_knows_nothing_has_no_part() -> None:
    (solved, trained), (features, labels) = heads(), held_out()
    telling(solved, trained)
    with torch.no_grad():
        before = solved(features)
        trained[1].weight.copy_(torch.randn(3, 4))  # type: ignore[operator]
        trained[1].weight[:, :3] -= 2 * torch.eye(3)  # type: ignore[operator,index]
        assert blend_(solved, trained, features, labels, by_loss(labels)) == 0.0
        torch.testing.assert_close(solved(features), before / fit_temperature(before, labels))


@pytest.mark.parametrize("extra", [nn.BatchNorm1d(4), nn.Linear(4, 4)])
def test_a_head_with_more_layers_has_no_part(extra: nn.Module) -> None:
    (solved, trained), (features, labels) = heads(), held_out()
    before = [tensor.clone() for tensor in solved.state_dict().values()]
    head = nn.Sequential(extra, *trained)
    assert blend_(solved, head, features, labels, by_loss(labels)) == 0.0
    assert all(map(torch.equal, before, solved.state_dict().values()))


def test_a_closing_solve_is_told_to_be_averaged_and_a_first_one_is_not(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def half_(solved: nn.Sequential, trained: nn.Module, features: Tensor, *more: Any) -> float:
        asked.append(tuple(features.shape))
        layer, own = solved[-1], trained[-1]  # type: ignore[index]
        with torch.no_grad():
            layer.weight.mul_(0.5)  # type: ignore[operator]
            layer.weight[:, -own.in_features :] += 0.5 * own.weight  # type: ignore
            layer.bias.copy_(0.5 * (layer.bias + own.bias))  # type: ignore
        return 0.5

    monkeypatch.setattr(solving, "blend_", half_)
    run = train_with({"stages": "solve,1:2@1e-2,solve"})
    rows = open_run(run).read_metrics()
    assert [row["stage_name"] for row in rows] == ["solve", "top 1", "top 1", "solve"]
    assert len(asked) == 1
    assert "averaged with 50% of the trained head" in (run / "log.txt").read_text()
