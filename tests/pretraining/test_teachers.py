import math
from dataclasses import replace
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import lightly.loss
import pytest
import torch
from torch import Tensor, nn

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method
from transferkit.pretraining.teachers import byol, dino, dino_views, momentum_at

N = 4


def encoder(name: str = "cnn") -> Encoder:
    return Encoder(create_backbone(name, pretrained=False, image_size=32))


def pictures(*sizes: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(N, 3, size, size, generator=generator) for size in sizes)


def batch(*sizes: int) -> Batch:
    return Batch(pictures(*sizes), torch.zeros(N, dtype=torch.int64), 0.25)


def part(method: Method, name: str) -> Any:
    return method.networks[name]  # type: ignore[index]


def step(method: Method, learned: Batch) -> None:
    """One step of plain gradient descent, as the loop makes it."""
    (phase,) = method.phases
    (player,) = phase.players.values()
    parameters = list(player.parameters()) if isinstance(player, nn.Module) else list(player)
    (move,) = phase.learn(learned)
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(move.loss, parameters), strict=True
    ):
        parameter.data -= 0.1 * gradient
    assert phase.after_step is not None
    phase.after_step(learned.progress)


def test_momentum_rises_to_one_along_a_cosine() -> None:
    found = [momentum_at(0.9, progress) for progress in (0, 0.5, 1)]
    assert found == pytest.approx([0.9, 0.95, 1.0])
    assert momentum_at(0.996, 0.25) == pytest.approx(1 - 0.004 * (math.sqrt(0.5) + 1) / 2)


@pytest.mark.parametrize("start", [0.5, None])
def test_the_target_of_byol_is_the_moving_average(start: float | None) -> None:
    method = byol(encoder(), Pretraining(projection=8, target_momentum=start), 0)
    online = nn.Sequential(part(method, "encoder"), part(method, "head"))
    target = part(method, "target")
    expected = [p.detach().clone() for p in online.parameters()]
    for first, second in zip(expected, target.parameters(), strict=True):
        assert torch.equal(first, second)
    for _ in range(2):
        step(method, batch(32, 32))
        kept = momentum_at(start or 0.99, 0.25)
        expected = [
            kept * old + (1 - kept) * new
            for old, new in zip(expected, online.parameters(), strict=True)
        ]
    for value, parameter in zip(expected, target.parameters(), strict=True):
        torch.testing.assert_close(value, parameter)
    assert not torch.equal(next(iter(target.parameters())), next(iter(online.parameters())))


def test_byol_predicts_the_targets_of_the_other_view() -> None:
    method = byol(encoder(), Pretraining(projection=8, target_momentum=0.0), 0)
    step(method, batch(32, 32))
    method.networks.eval()
    step(method, batch(32, 32))
    (move,) = method.phases[0].learn(batch(32, 32))
    with torch.no_grad():
        sides = []
        for image, other in (pictures(32, 32), pictures(32, 32)[::-1]):
            answer = part(method, "predictor")(part(method, "head")(part(method, "encoder")(image)))
            sides.append(torch.cosine_similarity(answer, part(method, "target")(other)).mean())
    torch.testing.assert_close(move.loss.detach(), -sum(sides) / 2)
    assert move.loss.requires_grad
    move.loss.backward()
    assert all(p.grad is None for p in part(method, "target").parameters())


def test_dino_agrees_with_the_librarys_loss_on_views_of_two_sizes() -> None:
    options = Pretraining(projection=16, temperature=0.2, teacher_temperature=0.05)
    method = dino(encoder(), options, 0)
    method.networks.eval()
    (move,) = method.phases[0].learn(batch(32, 32, 16, 16, 16))
    theirs = lightly.loss.DINOLoss(
        16, warmup_teacher_temp=0.05, teacher_temp=0.05, student_temp=0.2
    )
    views = pictures(32, 32, 16, 16, 16)
    with torch.no_grad():
        named = [part(method, "teacher")(view) for view in views[:2]]
        answers = [part(method, "head")(part(method, "encoder")(view)) for view in views]
        torch.testing.assert_close(move.loss.detach(), theirs(named, answers))
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    by_hand = [
        -(torch.softmax(named[t] / 0.05, 1) * torch.log_softmax(answers[s] / 0.2, 1)).sum(1).mean()
        for t, s in pairs
    ]
    torch.testing.assert_close(move.loss.detach(), torch.stack(by_hand).sum() / (2 * 5 - 2))


def test_the_centre_of_dino_follows_the_teacher_and_stays_where_nothing_is_learned() -> None:
    method = dino(encoder(), Pretraining(projection=16), 0)
    method.networks.eval()
    with torch.no_grad():
        mean = torch.cat([part(method, "teacher")(view) for view in pictures(32, 32)]).mean(0)
    compare = part(method, "compare")
    assert not compare.center.any()
    list(method.phases[0].learn(replace(batch(32, 32, 16), held_out=True)))
    assert not compare.center.any()
    list(method.phases[0].learn(batch(32, 32, 16)))
    torch.testing.assert_close(compare.center[0, 0], 0.1 * mean)
    assert torch.equal(method.networks.state_dict()["compare.center"], compare.center)


def test_the_last_layer_of_dino_keeps_rows_of_unit_length() -> None:
    method = dino(encoder(), Pretraining(projection=16), 0)
    step(method, batch(32, 32, 16))
    head = part(method, "head")
    head(torch.rand(2, part(method, "encoder").num_features))  # which sets the weight
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(16))


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("cnn", ("strong", "strong", "local", "local")),
        ("test_efficientnet", ("strong", "strong", "local", "local")),
        ("mlp", ("strong", "strong", "part", "part")),
        ("test_vit", ("strong", "strong", "local", "local")),
    ],
)
def test_small_views_are_small_where_the_backbone_takes_them(
    name: str, views: tuple[str, ...]
) -> None:
    assert dino_views(encoder(name), Pretraining(local_views=2)) == views
