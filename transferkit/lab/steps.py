"""How gradients become steps: clipping, optimisers, schedules."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from transferkit.backbones.scratch import ScratchDesign
from transferkit.config import ScheduleOptions
from transferkit.lab.finding import Finding, Line, Panel, lines, top
from transferkit.lab.trial import (
    MOMENTUM,
    accuracies,
    best_of,
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

STEEP = ScratchDesign(10, 64, "relu", initializer="normal:0.22")
"""Weights somewhat larger than He's: gradients grow from layer to layer."""
LIMITS = {"value": 0.05, "norm": 3.0, "adaptive": 0.05}


def turned(kind: str) -> float:
    """Return by how many degrees a clipping turns the gradient of a batch in a steep network."""
    network, data = make_network(STEEP), digits()
    parameters = list(network.classifier.parameters())
    functional.cross_entropy(network.classifier(data.images[:50]), data.labels[:50]).backward()
    before = [p.grad.flatten().clone() for p in parameters if p.grad is not None]
    CLIPPINGS[kind](parameters, LIMITS[kind])
    after = [p.grad.flatten() for p in parameters if p.grad is not None]
    both = torch.cat(before).double(), torch.cat(after).double()
    return math.degrees(math.acos(min(1.0, float(functional.cosine_similarity(*both, dim=0)))))


def clipping(scale: float = 1.0) -> Finding:
    """Train where gradients explode, without clipping and with each kind of it.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training RNNs", ICML 2013.
    """
    number, rate, runs = epochs(8, scale), 0.05, {}
    for kind in (None, *CLIPPINGS):
        rules = replace(MOMENTUM, clipping=(kind, LIMITS[kind]) if kind else None)
        network = make_network(STEEP)
        name = f"{kind} {LIMITS[kind]:g}" if kind else "none"
        runs[name] = train(network, digits(), [network.stage(number, rate)], rules)
    norm = runs[f"norm {LIMITS['norm']:g}"]
    ends = {name: run.val[-1] for name, run in runs.items()}
    largest = max(norm for norm in runs["none"].norms if math.isfinite(norm))
    clipped = np.mean(np.array(norm.norms) > LIMITS["norm"])
    taken = lines({name: run.clipped for name, run in runs.items()})
    angles = {kind: turned(kind) for kind in CLIPPINGS}
    return Finding(
        "Clipping where gradients explode",
        (
            Panel("Gradient that the step takes", "step", "norm of the gradient", taken, "y"),
            accuracies(f"Accuracy at the rate {rate:g}", runs),
        ),
        (
            f"Without clipping the gradient's norm reaches {largest:.2g}; clipped by norm, no step "
            f"takes more than {max(norm.clipped):.3g}, and {clipped:.0%} of the steps are clipped.",
            f"After {number} epochs {top(ends)} is best with {ends[top(ends)]:.1%}; without "
            f"clipping it is {ends['none']:.1%}.",
            f"Clipping by norm turns the first gradient by {angles['norm']:.0f}°, by value by "
            f"{angles['value']:.0f}° and adaptively, neuron by neuron, by "
            f"{angles['adaptive']:.0f}°.",
        ),
    )


def steps_to(losses: Sequence[float], goal: float) -> float:
    """Return the first step, from 1, at which smoothed losses are at most `goal`; else infinity."""
    return next((i + 1 for i, loss in enumerate(smoothed(losses)) if loss <= goal), math.inf)


def count_text(count: float) -> str:
    """Return a number of steps, infinity in words."""
    return f"{count:g}" if math.isfinite(count) else "not reached"


def optimizers(scale: float = 1.0) -> Finding:
    """Train with every optimiser at the best of three rates: the table of speed and quality.

    Speed is the number of steps to a low training loss, quality the accuracy at the end. The
    network is six layers with a start that is too small for ReLU, so that its slopes differ.
    Weight decay is 0, but AdamW's, which without it is Adam.
    """
    number, goal, runs, rates = epochs(10, scale), 0.1, {}, {}
    make = partial(make_network, ScratchDesign(6, 64, initializer="glorot_normal"))
    for name, kind in OPTIMIZERS.items():
        highest = 0.01 if name == "rmsprop" or "beta2" in kind.hyper else 0.1
        highest *= 3 if name == "sgd" else 1
        tried = (highest / 10, highest / 3, highest)
        rules = Rules(name, weight_decays=(0.05 if name == "adamw" else 0.0,) * 2)
        rates[name], runs[name] = best_of(tried, make, number, rules)
    steps = {name: steps_to(run.losses, goal) for name, run in runs.items()}
    ends = {name: float(np.mean(run.val[-2:])) for name, run in runs.items()}
    slowness = {name: -count for name, count in steps.items()}
    fast, slow = top(slowness), top(steps)
    best, worst = top(ends), min(ends, key=lambda name: ends[name])
    shown = {name: count_text(count) for name, count in steps.items()}
    rows = [
        (name, f"{rates[name]:.2g}", shown[name], f"{ends[name]:.1%}", kind.speed, kind.quality)
        for name, kind in OPTIMIZERS.items()
    ]
    grades = {
        grade: count_text(
            float(np.median([steps[n] for n, k in OPTIMIZERS.items() if k.speed == grade]))
        )
        for grade in ("slow", "medium", "fast")
    }
    points = tuple(Line(n, [ends[n]], [c]) for n, c in steps.items() if math.isfinite(c))
    curves = lines({name: smoothed(run.losses) for name, run in runs.items()})
    to_goal = f"steps to a training loss of {goal:g}"
    return Finding(
        "Optimisers, each at the best of three rates",
        (
            Panel("Training loss, running mean of 10", "step", "loss (nats)", curves, "y"),
            Panel("Speed and quality", to_goal, "accuracy at the end", points, share=True),
        ),
        (
            f"{fast} is first at a training loss of {goal:g} after {shown[fast]} steps, {slow} "
            f"last ({shown[slow]}).",
            f"At the end {best} is best with {ends[best]:.1%} and {worst} worst with "
            f"{ends[worst]:.1%} of other digits.",
            "Median steps to that loss, of those that the textbook calls slow: "
            f"{grades['slow']}, medium: {grades['medium']}, fast: {grades['fast']}.",
        ),
        (("optimiser", "rate", to_goal, "accuracy", "textbook: speed", "quality"), *rows),
    )


def schedules(scale: float = 1.0) -> Finding:
    """Train with momentum under every schedule, all with the same peak rate.

    Source: Smith, "A Disciplined Approach to Neural Network Hyper-Parameters", 2018, on 1cycle.
    """
    number, rate, runs = epochs(12, scale), 0.1, {}
    for name in SCHEDULES:
        network = make_network(ScratchDesign(3, 64))
        schedule = make_schedule(ScheduleOptions(name, patience=1), 0.0, True)
        stages = [network.stage(number, rate)]
        runs[name] = train(network, digits(), stages, MOMENTUM, schedule)
    losses = {name: float(np.mean(run.losses[-20:])) for name, run in runs.items()}
    ends = {name: run.val[-1] for name, run in runs.items()}
    half = {name: run.val[len(run.val) // 2] for name, run in runs.items()}
    least = min(losses, key=lambda name: losses[name])
    falls = 1 - runs["performance"].rates[-1] / runs["performance"].rates[0]
    rates = lines({name: run.rates for name, run in runs.items()})
    curves = lines({name: smoothed(run.losses, 20) for name, run in runs.items()})
    return Finding(
        f"Learning-rate schedules, peak rate {rate:g}",
        (
            Panel("Learning rate", "step", "learning rate", rates),
            Panel("Training loss, running mean of 20", "step", "loss (nats)", curves, "y"),
        ),
        (
            f"Over the last 20 steps the training loss is lowest under {least} with "
            f"{losses[least]:.2g}; at a constant rate it is {losses['constant']:.2g}.",
            f"Validation accuracy ends highest under {top(ends)} ({ends[top(ends)]:.1%}; constant "
            f"{ends['constant']:.1%}); halfway {top(half)} was ahead with {half[top(half)]:.1%}.",
            f"The performance schedule lowered its rate by {falls:.0%}, as validation asked for, "
            f"and ends at {ends['performance']:.1%}; 1cycle ends at {ends['1cycle']:.1%}.",
        ),
    )
