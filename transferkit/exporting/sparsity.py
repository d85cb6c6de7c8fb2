"""Global magnitude pruning: the smallest weights of all layers become zero, and stay zero."""

import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.head import Classifier
from transferkit.events import Event, Progress
from transferkit.training.optimizers import make_optimizer, parameter_groups, set_rates
from transferkit.training.schedules import Schedule
from transferkit.training.updates import Rules

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Epoch -> batches of images (N, 3, H, W) uint8 and labels (N,)."""

PRUNED_BY = 0.6
"""Share of the training after which all that shall be zero is zero; the rest settles."""
ROUNDS = 20


@dataclass(frozen=True)
class Retraining:
    """How a network trains while it is pruned: as its run did.

    steps: batches in each of the epochs. lr: the peak, of all layers.
    """

    epochs: int
    steps: int
    batches: Batches
    rules: Rules
    schedule: Schedule
    lr: float
    label_smoothing: float


def weights_of(classifier: Classifier) -> list[nn.Parameter]:
    """Return the weights of the convolutions and linear layers, from the stem to the last layer."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    layers = [module for module in classifier.modules() if isinstance(module, kinds)]
    return [layer.get_parameter("weight") for layer in layers]


def prunable(classifier: Classifier) -> list[nn.Parameter]:
    """Return the weights to prune.

    Without the last layer: it is small, and its scale differs from that of the layers below.
    """
    return weights_of(classifier)[:-1]


def sparsity_at(progress: float, sparsity: float) -> float:
    """Return the share of zeros at a progress, 0..1: many go at first, few in the end.

    Source: Zhu and Gupta, "To Prune, or Not to Prune", ICLR workshop 2018.
    """
    return sparsity * (1 - (1 - min(1.0, progress / PRUNED_BY)) ** 3)


@torch.no_grad()
def prune_(weights: Sequence[Tensor], share: float) -> None:
    """Set the smallest weights of all layers together to zero, in place. share: of them, 0..1.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015.
    """
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    kept = torch.ones_like(sizes)
    kept[sizes.topk(round(share * len(sizes)), largest=False).indices] = 0
    for weight, own in zip(weights, kept.split([w.numel() for w in weights]), strict=True):
        weight.mul_(own.view_as(weight))


def pruned(
    classifier: Classifier, sparsity: float, retraining: Retraining | None
) -> Generator[Event, None, Classifier]:
    """Return a copy with a share of its weights at zero, in evaluation mode.

    sparsity: 0..1, of the `prunable` weights of all layers. retraining: they go bit by bit while
    the others train; None: all at once, without training. Weights that are zero already stay zero,
    those of the last layer too.
    """
    copied = copy.deepcopy(classifier)
    if retraining is not None:
        yield from prune_gradually(copied, sparsity, retraining)
    prune_(prunable(copied), sparsity)
    return copied.eval()


def zeros(classifier: Classifier) -> float:
    """Return the share of zeros among the prunable weights."""
    weights = prunable(classifier)
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def prune_gradually(
    classifier: Classifier, sparsity: float, how: Retraining
) -> Generator[Event, None, None]:
    """Train a classifier while ever more of its weights become zero.

    Batch norm is in training mode, dropout and drop-path are off: few weights need regularisation.
    """
    named = [(n, p) for n, p in classifier.named_parameters() if p.requires_grad]

    def column_of(name: str) -> int:
        return int(name.startswith("head."))

    groups = parameter_groups(named, column_of, (1.0, 1.0), how.rules.weight_decays)
    optimizer = make_optimizer(how.rules.optimizer, groups, how.rules.hyper)
    classifier.eval()
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    every, total = weights_of(classifier), how.epochs * how.steps
    for epoch in range(how.epochs):
        for number, (images, labels) in enumerate(how.batches(epoch)):
            done = epoch * how.steps + number
            if done % -(-total // ROUNDS) == 0:
                prune_(prunable(classifier), sparsity_at(done / total, sparsity))
                kept = [(weight != 0) for weight in every]
            factor, momentum = how.schedule.at((done + 0.5) / total)
            set_rates(optimizer, how.lr * factor, momentum)
            logits = classifier(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=how.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for weight, mask in zip(every, kept, strict=True):
                    weight.mul_(mask)
            yield Progress(f"sparse epoch {epoch + 1} of {how.epochs}", number + 1, how.steps)
