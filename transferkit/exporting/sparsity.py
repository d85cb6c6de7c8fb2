"""Global magnitude pruning: the smallest weights of all layers become zero, and stay zero."""

import copy
from collections.abc import Callable, Generator, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from transferkit.backbones.head import Classifier
from transferkit.events import Event, Progress

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Epoch -> batches of images (N, 3, H, W) uint8 and labels (N,)."""

PEAK_LR = 1e-3
LABEL_SMOOTHING = 0.1


def prunable(classifier: Classifier) -> list[tuple[nn.Module, str]]:
    """Return the convolutions and linear layers, each with "weight".

    Without the last layer: it is small, and its scale differs from that of the layers below.
    """
    layers = [m for m in classifier.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    return [(layer, "weight") for layer in layers[:-1]]


def pruned(
    classifier: Classifier, sparsity: float, epochs: int, steps: int, batches: Batches
) -> Generator[Event, None, Classifier]:
    """Return a copy with a share of its weights at zero.

    sparsity: 0..1, of the `prunable` weights of all layers. epochs: of training with fixed zeros by
    AdamW, the learning rate a cosine from `PEAK_LR` to 0; steps: batches in each. The copy is in
    evaluation mode.
    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015.
    """
    copied = copy.deepcopy(classifier)
    layers = prunable(copied)
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    if epochs:
        yield from train_sparse(copied, epochs, steps, batches)
    for layer, name in layers:
        prune.remove(layer, name)
    return copied.eval()


def zeros(classifier: Classifier) -> float:
    """Return the share of zeros among the prunable weights."""
    weights = [getattr(layer, name) for layer, name in prunable(classifier)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def train_sparse(
    classifier: Classifier, epochs: int, steps: int, batches: Batches
) -> Generator[Event, None, None]:
    """Train the remaining weights; pruned ones get no gradient.

    Batch norm is in training mode, dropout and drop-path are off: few weights need regularisation.
    """
    weights = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    classifier.eval()
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    for epoch in range(epochs):
        for number, (images, labels) in enumerate(batches(epoch)):
            logits = classifier(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield Progress(f"sparse epoch {epoch + 1} of {epochs}", number + 1, steps)
