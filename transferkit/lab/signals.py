"""Signals forward and gradients backward through many layers."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.scratch import Scratch, ScratchDesign, make_scratch
from transferkit.config.initializers import parse_initializer
from transferkit.lab.finding import Finding, Line, Panel, lines, top
from transferkit.lab.trial import (
    accuracies,
    best_of,
    by_layer,
    digits,
    epochs,
    make_network,
    train,
)

RATES = (0.003, 0.01, 0.03)
LAYER = "layer, from the lowest"


def gradient_panel(norms: dict[str, list[float]], note: str, *more: Line) -> Panel:
    """Return a panel of gradients by layer."""
    curves = (*lines(norms), *more)
    return Panel(f"Gradient at the start{note}", LAYER, "norm of the gradient", curves, "y")


def activations(scale: float = 1.0) -> Finding:
    """Compare activations in a network of 20 layers, each with its matching initialiser.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    depth, norms, runs = 20, {}, {}
    for name in ("logistic", "tanh", "relu", "elu", "selu"):
        make = partial(make_network, ScratchDesign(depth, 64, name))
        norms[name] = [row["gradient_norm"] for row in by_layer(make())]
        _, runs[name] = best_of(RATES, make, epochs(8, scale))
    network = make_network(ScratchDesign(depth, 64, "relu"))
    train(network, digits(), [network.stage(epochs(8, scale), max(RATES))])
    dead = np.mean([row["dead"] for row in by_layer(network)])
    left = {name: values[0] / values[-1] for name, values in norms.items()}
    low = min(left, key=lambda name: left[name])
    ends = {name: run.val[-1] for name, run in runs.items()}
    bound = [norms["logistic"][-1] * 0.25**n for n in reversed(range(depth))]
    return Finding(
        f"Activations in a network of {depth} layers",
        (
            gradient_panel(norms, ", dashed: 4⁻ⁿ", Line("logistic", bound, dashed=True)),
            accuracies(f"Accuracy at the best of {len(RATES)} rates", runs),
        ),
        (
            f"The lowest of {depth} layers gets {left[low]:.0e} times the gradient of the highest "
            f"with {low} ({0.25 ** (depth - 1):.0e} if each layer left a quarter, the largest "
            f"slope of the logistic function) and {left['relu']:.2g} times with relu.",
            f"After {epochs(8, scale)} epochs {top(ends)} is best with {ends[top(ends)]:.0%}; "
            f"logistic has {ends['logistic']:.0%}, relu {ends['relu']:.0%}.",
            f"Trained at the rate {max(RATES):g}, {dead:.0%} of all ReLU units are dead: zero for "
            "every digit, so that no gradient reaches their weights.",
        ),
    )


def second_moments(model: Scratch, inputs: Tensor) -> list[float]:
    """Return the mean square of every layer's linear output for inputs (N, D)."""
    found = []
    with torch.no_grad():
        for block in model.double().blocks:
            inputs = block.get_submodule("linear")(inputs)
            found.append(float(inputs.square().mean()))
            inputs = block.get_submodule("act")(inputs)
    return found


def initializers(scale: float = 1.0) -> Finding:
    """Send normal signals through 50 ReLU layers; theory beside what is measured.

    A layer multiplies the mean square by width * variance of its weights, of which ReLU leaves
    half. Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2.
    """
    depth, width, networks, side_px = 50, 256 if scale < 1 else 512, max(3, round(6 * scale)), 8
    inputs = torch.randn(64, 3 * side_px**2, generator=torch.Generator().manual_seed(0)).double()
    measured, theory = {}, {}
    for name in ("he_normal", "glorot_normal", "orthogonal:1.4142", "normal:0.01", "normal:1"):
        design = ScratchDesign(depth, width, initializer=name)
        models = (make_scratch("mlp", design, side_px, seed) for seed in range(networks))
        mean = np.mean([second_moments(model, inputs) for model in models], axis=0)
        measured[name] = (mean / mean[0]).tolist()
        gain = width * parse_initializer(name).variance(width, width) / 2
        theory[name] = [gain**n for n in range(depth)]
    ends = {name: values[-1] for name, values in measured.items()}
    off = max(abs(np.log(ends[name] / theory[name][-1])) / (depth - 1) for name in ends)
    small, large = min(ends, key=lambda name: ends[name]), top(ends)
    steady = [name for name in ends if 0.5 < ends[name] < 2]
    kept, label = {name: measured[name] for name in steady}, "variance, first layer = 1"
    return Finding(
        f"Variance of a signal through {depth} ReLU layers of {width} units",
        (
            Panel(
                "All, dashed: theory",
                "layer",
                label,
                (*lines(measured), *lines(theory, dashed=True)),
                "y",
            ),
            Panel(
                "Those that keep it within a factor of 2",
                "layer",
                label,
                (*lines(kept), *lines({name: theory[name] for name in steady}, dashed=True)),
            ),
        ),
        (
            f"After {depth} layers {' and '.join(steady) or 'no initialiser'} keep the variance "
            f"within a factor of 2; with he_normal it is {ends['he_normal']:.2g} times the first "
            "layer's.",
            f"{large} multiplies it by {ends[large]:.0e}, {small} by {ends[small]:.0e}; "
            f"glorot_normal, made for other activations, by {ends['glorot_normal']:.0e}.",
            "In theory a ReLU layer multiplies the variance by width · Var(w) / 2; what was "
            f"measured differs from that by at most {np.expm1(off):.1%} per layer.",
        ),
    )


def batchnorm(scale: float = 1.0) -> Finding:
    """Train a network of 10 layers with and without batch norm at rates from small to large.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.
    """
    depth, number, good = 10, epochs(6, scale), 0.8
    places = {"without": (), "before activation": ("before",), "after activation": ("after",)}
    rates = tuple(0.001 * 4**n for n in range(6))
    stds, ends = {}, {}
    for name, place in places.items():
        make = partial(make_network, ScratchDesign(depth, 64, batchnorm=place))
        stds[name] = [row["activation_std"] for row in by_layer(make())]
        ends[name] = [best_of((rate,), make, number)[1].val[-1] for rate in rates]
    usable = {
        name: [f"{rate:.3g}" for rate, end in zip(rates, values, strict=True) if end >= good]
        for name, values in ends.items()
    }
    shown = {name: f"{u[0]} to {u[-1]}" if u else "none" for name, u in usable.items()}
    best = {name: max(values) for name, values in ends.items()}
    gap = {name: max(values) / min(values) for name, values in stds.items()}
    accuracy = f"accuracy after {number} epochs"
    return Finding(
        f"Batch norm in a network of {depth} layers",
        (
            Panel("Rates", "learning rate", accuracy, lines(ends, rates), "x", share=True),
            Panel("Activations at the start", LAYER, "standard deviation", lines(stds)),
        ),
        (
            f"Rates that reach {good:.0%} in {number} epochs: {shown['without']} without batch "
            f"norm, {shown['before activation']} with it before the activation, "
            f"{shown['after activation']} after it.",
            f"At the best rate of each, {best['without']:.1%} without, "
            f"{best['before activation']:.1%} before and {best['after activation']:.1%} after the "
            f"activation: {top(best)} is best.",
            "At the start the layers' deviations differ by a factor of up to "
            f"{gap['without']:.2f} without, {gap['before activation']:.2f} with batch norm before "
            f"and {gap['after activation']:.2f} after the activation.",
        ),
    )


def skip(scale: float = 1.0) -> Finding:
    """Compare 30 layers with and without skip connections, and 3 layers, all with Glorot's start.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    norms, runs = {}, {}
    for name, depth, skips in (
        ("3 layers", 3, False),
        ("30 layers", 30, False),
        ("30 layers, skip", 30, True),
    ):
        design = ScratchDesign(depth, 64, "relu", initializer="glorot_normal", skip=skips)
        make = partial(make_network, design)
        norms[name] = [row["gradient_norm"] for row in by_layer(make())]
        _, runs[name] = best_of((0.001, 0.003, 0.01), make, epochs(8, scale))
    few, plain, skipped = (run.val[-1] for run in runs.values())
    left = {name: values[0] / values[-1] for name, values in norms.items()}
    return Finding(
        "Skip connections in a network of 30 layers",
        (gradient_panel(norms, ""), accuracies("Accuracy at the best of 3 rates", runs)),
        (
            f"The lowest of 30 layers gets {left['30 layers']:.2g} times the gradient of the "
            f"highest without skip connections, {left['30 layers, skip']:.2g} times with them.",
            f"After {epochs(8, scale)} epochs 30 layers have {skipped:.1%} with and {plain:.1%} "
            f"without skip connections: {abs(skipped - plain) * 100:.1f} points "
            f"{'more' if skipped >= plain else 'fewer'}.",
            f"3 layers reach {few:.1%}, {abs(few - skipped) * 100:.1f} points "
            f"{'more' if few >= skipped else 'fewer'} than 30 with skip connections and "
            f"{abs(few - plain) * 100:.1f} points {'more' if few >= plain else 'fewer'} than 30 "
            "without.",
        ),
    )
