"""Pruning by magnitude: which weights go, and that they stay away."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from transferkit.backbones.head import Classifier, make_head
from transferkit.events import Progress
from transferkit.exporting.sparsity import prunable, pruned, zeros


def classifier() -> Classifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    made = Classifier(nn.Sequential(*layers), make_head(6, 4), (0.5,) * 3, (0.2,) * 3)
    nn.init.normal_(made.head[-1].weight)  # starts at zero, and all of it may be pruned
    return made.eval()


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8, generator=generator)
        yield images, torch.arange(8) % 4


def run(model: Classifier, sparsity: float, epochs: int = 0) -> tuple[Classifier, list[object]]:
    events, shown = pruned(model, sparsity, epochs, 3, batches), []
    while True:
        try:
            shown.append(next(events))
        except StopIteration as end:
            return end.value, shown


def test_the_smallest_weights_of_all_layers_together_are_gone() -> None:
    model = classifier()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    made, _ = run(model, 0.8)
    convolutions = [model.backbone[0], model.backbone[3]]
    sizes = torch.cat([c.weight.abs().flatten() for c in convolutions])
    limit = sizes.kthvalue(round(0.8 * len(sizes))).values
    for number in (0, 3):
        weight = model.backbone[number].weight
        expected = torch.where(weight.abs() > limit, weight, 0.0)
        assert torch.equal(made.backbone[number].weight, expected)
    assert torch.equal(made.head[-1].weight, model.head[-1].weight)  # the last layer is spared
    assert zeros(made) == round(0.8 * len(sizes)) / len(sizes)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert made.state_dict().keys() == before.keys()  # no masks are left behind
    prune.global_unstructured(prunable(model), prune.L1Unstructured, amount=0.8)
    assert torch.equal(model.backbone[3].weight, made.backbone[3].weight)


def test_training_on_changes_what_is_left_and_nothing_else() -> None:
    still, _ = run(classifier(), 0.8)
    made, shown = run(classifier(), 0.8, epochs=2)
    for (ours, _), (theirs, _) in zip(prunable(made), prunable(still), strict=True):
        assert torch.equal(ours.weight == 0, theirs.weight == 0)
        assert not torch.equal(ours.weight, theirs.weight)
    assert not torch.equal(made.backbone[1].running_mean, still.backbone[1].running_mean)
    again, _ = run(classifier(), 0.8, epochs=2)
    same = again.state_dict()
    assert all(torch.equal(t, same[name]) for name, t in made.state_dict().items())
    assert [e.done for e in shown if isinstance(e, Progress)] == [1, 2, 3] * 2
    assert not made.training
