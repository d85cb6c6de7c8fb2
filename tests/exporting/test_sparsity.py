"""Pruning by magnitude: which weights go, when, and that they stay away."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from transferkit.backbones.head import Classifier, make_head
from transferkit.events import Progress
from transferkit.exporting.sparsity import (
    Retraining,
    prunable,
    prune_,
    pruned,
    sparsity_at,
    weights_of,
    zeros,
)
from transferkit.training.schedules import Schedule
from transferkit.training.updates import Rules


def classifier() -> Classifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    made = Classifier(nn.Sequential(*layers), make_head(6, 4), (0.5,) * 3, (0.2,) * 3)
    nn.init.normal_(made.head[-1].weight)  # starts at zero
    return made.eval()


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=generator)
        yield images, torch.arange(8) % 4


def run(
    model: Classifier, sparsity: float, epochs: int = 0, rules: Rules | None = None
) -> tuple[Classifier, list[object]]:
    schedule = Schedule(lambda progress: 1 - progress)
    how = Retraining(epochs, 3, batches, rules or Rules("momentum"), schedule, 1e-2, 0.1)
    events, shown = pruned(model, sparsity, how if epochs else None), []
    while True:
        try:
            shown.append(next(events))
        except StopIteration as end:
            return end.value, shown


def test_the_smallest_weights_of_all_layers_together_are_gone() -> None:
    model = classifier()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    made, _ = run(model, 0.8)
    assert torch.equal(made.head[-1].weight, model.head[-1].weight)  # the last layer is spared
    assert zeros(made) == pytest.approx(0.8, abs=0.001)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert made.state_dict().keys() == before.keys()
    layers = [(model.backbone[number], "weight") for number in (0, 3)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.8)
    for layer, weight in zip((model.backbone[0], model.backbone[3]), prunable(made), strict=True):
        assert torch.equal(layer.weight, weight)


def test_the_share_of_zeros_rises_fast_and_then_slowly() -> None:
    found = [sparsity_at(p, 0.8) for p in (0, 0.3, 0.6, 1)]
    assert found == pytest.approx([0, 0.8 * (1 - 0.5**3), 0.8, 0.8])


def test_weights_go_bit_by_bit_and_stay_away_while_the_others_train() -> None:
    model = classifier()
    made, shown = run(model, 0.8, epochs=4)
    assert zeros(made) == pytest.approx(0.8, abs=0.001)
    at_once, _ = run(classifier(), 0.8)
    kept = torch.cat([w.flatten() != 0 for w in prunable(made)])
    first = torch.cat([w.flatten() != 0 for w in prunable(at_once)])
    assert not torch.equal(kept, first)  # what is small has changed on the way
    assert not torch.equal(made.backbone[1].running_mean, model.backbone[1].running_mean)
    same = run(classifier(), 0.8, epochs=4)[0].state_dict()
    assert all(torch.equal(t, same[name]) for name, t in made.state_dict().items())
    assert [e.done for e in shown if isinstance(e, Progress)] == [1, 2, 3] * 4
    assert not made.training


def test_it_trains_with_the_optimiser_and_the_schedule_of_the_run() -> None:
    model = classifier()
    plain = run(model, 0.0, 1, Rules("sgd", weight_decays=(0.0, 0.0)))[0]
    expected = classifier()
    expected.backbone[1].train()
    for number, (images, labels) in enumerate(batches(0)):
        loss = nn.functional.cross_entropy(expected(images), labels, label_smoothing=0.1)
        expected.zero_grad()
        loss.backward()
        for parameter in expected.parameters():
            parameter.data -= 1e-2 * (1 - (number + 0.5) / 3) * parameter.grad
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name])


@pytest.mark.parametrize("epochs", [0, 2])
def test_zeros_of_the_last_layer_stay(epochs: int) -> None:
    model = classifier()
    prune_([model.head[-1].weight.data], 0.5)
    made, _ = run(model, 0.8, epochs)
    last = weights_of(made)[-1]
    assert int((last == 0).sum()) == 12
    assert torch.equal(last == 0, model.head[-1].weight == 0)
    assert torch.equal(last, model.head[-1].weight) == (epochs == 0)
