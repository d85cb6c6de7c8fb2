"""How gradients become steps: clipping, optimisers, schedules."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from transferkit.backbones.scratch import ScratchDesign
from transferkit.config import ScheduleOptions
from transferkit.lab.finding import Finding, Line, Panel
from transferkit.lab.trial import (
    MOMENTUM,
    History,
    best_of,
    by_layer,
    digits,
    epochs,
    make_network,
    smoothed,
    train,
)
from transferkit.training.gradients import CLIPPINGS
from transferkit.training.optimizers import OPTIMIZERS
from transferkit.training.schedules import SCHEDULES, make_schedule
from transferkit.training.updates import Rules

STEEP = ScratchDesign(10, 64, "relu", initializer="normal:0.35")
"""Weights of about twice He's deviation: gradients explode."""
LIMITS = {"value": 0.02, "norm": 1.0, "adaptive": 0.02}


def turned(kind: str) -> float:
    """Return by how many degrees a clipping turns the gradient of a batch in a steep network."""
    network = make_network(STEEP)
    data = digits()
    parameters = list(network.classifier.parameters())
    torch.nn.functional.cross_entropy(
        network.classifier(data.images[:50]), data.labels[:50]
    ).backward()

    def whole() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double()

    before = whole()
    CLIPPINGS[kind](parameters, LIMITS[kind])
    cosine = torch.nn.functional.cosine_similarity(before, whole(), dim=0)
    return math.degrees(math.acos(min(1.0, float(cosine))))


def clipping(scale: float = 1.0) -> Finding:
    """Train where gradients explode, without clipping and with each kind of it.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training RNNs", ICML 2013.
    """
    number, rate = epochs(8, scale), 0.01
    runs: dict[str, History] = {}
    for kind in ("none", *CLIPPINGS):
        network = make_network(STEEP)
        rules = Rules(
            "momentum",
            weight_decays=(0.0, 0.0),
            clipping=None if kind == "none" else (kind, LIMITS[kind]),
        )
        runs[kind] = train(network, digits(), [network.stage(number, rate)], rules)
    ends = {kind: run.val[-1] for kind, run in runs.items()}
    finite = [norm for norm in runs["none"].norms if math.isfinite(norm)]
    best = max(ends, key=ends.__getitem__)
    clipped = np.mean(np.array(runs["norm"].norms) > LIMITS["norm"])
    angles = {kind: turned(kind) for kind in CLIPPINGS}
    names = {kind: kind if kind == "none" else f"{kind} {LIMITS[kind]:g}" for kind in runs}
    return Finding(
        "Clipping where gradients explode",
        (
            Panel(
                "Gradient that the step takes",
                "step",
                "norm of the gradient",
                tuple(Line(names[kind], run.clipped) for kind, run in runs.items()),
                "y",
            ),
            Panel(
                f"Accuracy at the rate {rate:g}",
                "epoch",
                "validation accuracy",
                tuple(Line(names[kind], run.val) for kind, run in runs.items()),
                share=True,
            ),
        ),
        (
            f"Without clipping the gradient's norm reaches {max(finite):.2g}; clipped by norm, no "
            f"step takes more than {max(runs['norm'].clipped):.3g}, and {clipped:.0%} of the steps "
            "are clipped.",
            f"After {number} epochs {names[best]} is best with {ends[best]:.1%}; without clipping "
            f"it is {ends['none']:.1%}.",
            f"Clipping by norm turns the first gradient by {angles['norm']:.0f}°, by value by "
            f"{angles['value']:.0f}° and adaptively, neuron by neuron, by "
            f"{angles['adaptive']:.0f}°.",
        ),
    )


def steps_to(losses: Sequence[float], goal: float) -> int | None:
    """Return the first step, from 1, at which smoothed losses are at most `goal`."""
    return next((i + 1 for i, loss in enumerate(smoothed(losses)) if loss <= goal), None)


def optimizers(scale: float = 1.0) -> Finding:
    """Train with every optimiser at the best of several rates: the table of speed and quality.

    Speed is the number of steps to a training loss of 0.2, quality the accuracy at the end.
    """
    number, goal = epochs(10, scale), 0.2
    design = ScratchDesign(3, 64)
    runs: dict[str, History] = {}
    rates: dict[str, float] = {}
    for name in OPTIMIZERS:
        tried = (0.03, 0.1, 0.3) if name == "sgd" else (0.01, 0.03, 0.1)
        if "beta2" in OPTIMIZERS[name].hyper or name == "rmsprop":
            tried = (0.001, 0.003, 0.01)
        rules = Rules(name, weight_decays=(0.0, 0.0))
        rates[name], runs[name] = best_of(
            tried, partial(make_network, design), digits(), number, rules
        )
    steps = {name: steps_to(run.losses, goal) for name, run in runs.items()}
    ends = {name: float(np.mean(run.val[-2:])) for name, run in runs.items()}
    reached = {name: count for name, count in steps.items() if count is not None}
    fast = min(reached, key=reached.__getitem__) if reached else "none"
    best, worst = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
    adaptive = float(np.mean([ends[n] for n in OPTIMIZERS if n not in ("sgd", "momentum")]))
    rows = [
        (
            name,
            f"{rates[name]:g}",
            str(steps[name] or "not reached"),
            f"{ends[name]:.1%}",
            kind.speed,
            kind.quality,
        )
        for name, kind in OPTIMIZERS.items()
    ]
    slow = steps["sgd"]
    return Finding(
        "Optimisers, each at the best of three rates",
        (
            Panel(
                "Speed",
                "step",
                "training loss (running mean of 10)",
                tuple(Line(name, smoothed(run.losses)) for name, run in runs.items()),
                "y",
            ),
            Panel(
                "Quality",
                "epoch",
                "validation accuracy",
                tuple(Line(name, run.val) for name, run in runs.items()),
                share=True,
            ),
        ),
        (
            f"{fast} is first at a training loss of {goal:g}, after {steps.get(fast)} steps; plain "
            + (f"SGD takes {slow}." if slow else "SGD does not get there."),
            f"At the end {best} is best with {ends[best]:.1%} and {worst} worst with "
            f"{ends[worst]:.1%}.",
            f"Speed differs by a factor of {max(reached.values()) / min(reached.values()):.1f} "
            f"among those that get there, quality by {(ends[best] - ends[worst]) * 100:.1f} points."
            if reached
            else f"None reaches that loss; quality differs by {ends[best] - ends[worst]:.1%}.",
        ),
        (("optimiser", "rate", f"steps to loss {goal:g}", "accuracy", "speed", "quality"), *rows),
    )


def schedules(scale: float = 1.0) -> Finding:
    """Train with momentum under every schedule, all with the same peak rate.

    Source: Smith, "A Disciplined Approach to Neural Network Hyper-Parameters", 2018, on 1cycle.
    """
    number, rate = epochs(12, scale), 0.1
    design = ScratchDesign(3, 64)
    runs = {}
    for name in SCHEDULES:
        network = make_network(design)
        schedule = make_schedule(ScheduleOptions(name, patience=1), 0.0, True)
        stages = [network.stage(number, rate)]
        runs[name] = train(network, digits(), stages, MOMENTUM, schedule)
    losses = {name: float(np.mean(run.losses[-20:])) for name, run in runs.items()}
    ends = {name: run.val[-1] for name, run in runs.items()}
    best = min(losses, key=losses.__getitem__)
    top = max(ends, key=ends.__getitem__)
    half = {name: run.val[len(run.val) // 2] for name, run in runs.items()}
    early = max(half, key=half.__getitem__)
    falls = 1 - runs["performance"].rates[-1] / runs["performance"].rates[0]
    return Finding(
        f"Learning-rate schedules, peak rate {rate:g}",
        (
            Panel(
                "Rate",
                "step",
                "learning rate",
                tuple(Line(name, run.rates) for name, run in runs.items()),
            ),
            Panel(
                "Loss",
                "step",
                "training loss (running mean of 20)",
                tuple(Line(name, smoothed(run.losses, 20)) for name, run in runs.items()),
                "y",
            ),
        ),
        (
            f"Over the last 20 steps the training loss is lowest under {best} with "
            f"{losses[best]:.2g}; at a constant rate it is {losses['constant']:.2g}.",
            f"Validation accuracy ends highest under {top} ({ends[top]:.1%}; constant "
            f"{ends['constant']:.1%}), halfway {early} was ahead with {half[early]:.1%}.",
            f"The performance schedule lowered its rate by {falls:.0%}, as validation asked for; "
            f"1cycle ends at {ends['1cycle']:.1%}.",
        ),
    )
