"""Short trainings of small networks on handwritten digits, with the parts that a run has.

The digits come with scikit-learn: 1,797 pictures of 8 x 8 pixels, ten classes. Source: Alpaydin
and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from transferkit.backbones.head import Classifier, HeadDesign, make_head
from transferkit.backbones.scratch import ScratchDesign, make_scratch
from transferkit.config import Config, Device, ScheduleOptions
from transferkit.lab.finding import Panel, lines
from transferkit.training.fabric import make_fabric
from transferkit.training.monitor import Monitor, watch
from transferkit.training.optimizers import set_rates
from transferkit.training.schedules import Plateau, Schedule, make_schedule
from transferkit.training.stages import PlannedStage, apply_stage, column_finder
from transferkit.training.updates import Rules, make_updater

SIDE_PX, BATCH, CLASSES = 8, 50, 10
MOMENTUM = Rules("momentum", weight_decays=(0.0, 0.0))
STEADY = make_schedule(ScheduleOptions("constant"), 0.0, False)


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 3, S, S) uint8 and labels (N,) to learn from, and others to judge by."""

    images: Tensor
    labels: Tensor
    val_images: Tensor
    val_labels: Tensor

    def of_classes(
        self, wanted: Sequence[int], per_class: int | None = None, skipped: int = 0
    ) -> "Digits":
        """Return the pictures of some classes, as labels 0, 1 ...

        per_class: to learn from, None for all; skipped: so many of each before them.
        """
        end = None if per_class is None else skipped + per_class
        known = [(self.labels == c).nonzero()[:, 0][skipped:end] for c in wanted]
        others = [(self.val_labels == c).nonzero()[:, 0] for c in wanted]
        labels, val_labels = (
            torch.repeat_interleave(torch.arange(len(wanted)), torch.tensor([*map(len, part)]))
            for part in (known, others)
        )
        at, val_at = torch.cat(known), torch.cat(others)
        return Digits(self.images[at], labels, self.val_images[val_at], val_labels)


@functools.cache
def digits(side_px: int = SIDE_PX) -> Digits:
    """Return 998 digits to learn from and 799 to judge by, in a fixed random order."""
    found = load_digits()
    count = len(found.target) * 5 // 9
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.from_numpy(found.images[order]).float()[:, None] * (255 / 16)
    if side_px != SIDE_PX:
        images = functional.interpolate(images, side_px, mode="bilinear", antialias=True)
    pixels = images.round().clamp(0, 255).byte().expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(found.target[order]).long()
    return Digits(pixels[:count], labels[:count], pixels[count:], labels[count:])


@dataclass(frozen=True)
class Network:
    """A classifier and the module paths of its block groups (G,), from the stem to the top."""

    classifier: Classifier
    groups: tuple[tuple[str, ...], ...]

    @property
    def column_of(self) -> Any:
        """Name of a parameter or module -> column of the plan."""
        return column_finder(self.groups)

    def stage(self, epochs: int, lr: float) -> PlannedStage:
        """Plan a stage that trains everything at one rate."""
        return PlannedStage("all", epochs, lr, (1.0,) * (len(self.groups) + 1))

    def monitor(self) -> Monitor:
        """Watch what trains."""
        names = tuple(map(str, range(len(self.groups) + 1)))
        return watch(self.classifier, names, self.column_of)


def make_network(
    design: ScratchDesign,
    name: str = "mlp",
    side_px: int = SIDE_PX,
    seed: int = 0,
    classes: int = CLASSES,
) -> Network:
    """Build a network from scratch with a classifier that is random too.

    One at zero would give the layers below no gradient in the first step.
    """
    backbone = make_scratch(name, design, side_px, seed)
    head_design = HeadDesign(dropout=(design.dropout,), classifier_initializer="glorot_normal")
    head = make_head(backbone.num_features, classes, head_design, seed)
    classifier = Classifier(backbone, head, (0.5,) * 3, (0.5,) * 3)
    return Network(classifier, tuple((f"blocks.{i}",) for i in range(design.depth)))


@dataclass
class History:
    """What was measured in a training.

    By step: losses of the batch, norms of the gradient before and after clipping, rates.
    By epoch, with one before the first: val, train: accuracies.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)

    def judge(self, classifier: nn.Module, data: Digits) -> None:
        """Note both accuracies as they are now."""
        self.train.append(accuracy(classifier, data.images, data.labels))
        self.val.append(accuracy(classifier, data.val_images, data.val_labels))


def train(
    network: Network,
    data: Digits,
    stages: Sequence[PlannedStage],
    rules: Rules = MOMENTUM,
    schedule: Schedule = STEADY,
) -> History:
    """Train in stages, as a run does, and return what was measured; a divergence is let happen."""
    classifier, history, plateau = network.classifier, History(), Plateau()
    epochs = [stage.epochs for stage in stages]
    start = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        history.judge(classifier, data)
        for number, stage in enumerate(stages):
            apply_stage(classifier, network.column_of, stage)
            updater = make_updater(
                classifier, classifier, network.column_of, stage, rules, start, _fabric()
            )
            monitor = network.monitor()
            for epoch in range(stage.epochs):
                apply_stage(classifier, network.column_of, stage)
                monitor.begin(1)
                picks = torch.randperm(len(data.labels)).split(BATCH)
                for step, pick in enumerate(picks):
                    part = (step + 0.5) / len(picks)
                    factor, momentum = schedule.at(schedule.progress(epochs, number, epoch, part))
                    rate = stage.lr * factor * plateau.factor
                    set_rates(updater.optimizer, rate, momentum)
                    updater.begin()
                    logits = updater.network(data.images[pick])
                    loss = functional.cross_entropy(logits, data.labels[pick])
                    updater.backward(loss)
                    updater.step(monitor)
                    history.losses.append(float(loss.detach()))
                    history.norms.append(float(monitor.norms[-1]))
                    taken = [p.grad.norm() for p in classifier.parameters() if p.grad is not None]
                    history.clipped.append(float(torch.stack(taken).norm()))
                    history.rates.append(rate)
                history.judge(classifier, data)
                schedule.record(plateau, history.val[-1], 0.0)
    return history


@functools.cache
def _fabric() -> Any:
    return make_fabric(Config(device=Device(accelerator="cpu", precision="32")))


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of pictures that are classified right; the mode becomes that of use."""
    logits = torch.cat([classifier.eval()(part) for part in images.split(256)])
    return float((logits.argmax(1) == labels).float().mean())


def by_layer(network: Network) -> list[dict[str, float]]:
    """Return gradients and activations of the hidden layers on all digits, see `Monitor`."""
    apply_stage(network.classifier, network.column_of, network.stage(1, 1.0))
    monitor = network.monitor()
    monitor.begin(1)
    with monitor.forward(0):
        loss = functional.cross_entropy(network.classifier(digits().images), digits().labels)
    loss.backward()
    monitor.backward()
    return monitor.rows()[:-1]


def smoothed(values: Sequence[float], over: int = 10) -> list[float]:
    """Return running means over the last `over` values."""
    return [float(np.mean(values[max(0, i + 1 - over) : i + 1])) for i in range(len(values))]


def epochs(count: int, scale: float) -> int:
    """Return the number of epochs of an experiment at a scale, at least one."""
    return max(1, round(count * scale))


def accuracies(
    title: str, runs: Mapping[str, History], train: bool = False, bottom: float | None = None
) -> Panel:
    """Return a panel of the accuracy of runs by epoch, on the others or the training pictures."""
    curves = {name: run.train if train else run.val for name, run in runs.items()}
    kind = "training" if train else "validation"
    return Panel(title, "epoch", f"{kind} accuracy", lines(curves), share=True, bottom=bottom)


def best_of(
    rates: Sequence[float], make: Callable[[], Network], number: int, rules: Rules = MOMENTUM
) -> tuple[float, History]:
    """Train the same network on all digits with several rates; return the best one and its run."""
    runs = {}
    for rate in rates:
        network = make()
        runs[rate] = train(network, digits(), [network.stage(number, rate)], rules)
    best = max(rates, key=lambda rate: np.mean(runs[rate].val[-2:]))
    return best, runs[best]
