"""Signals forward and gradients backward through many layers."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.scratch import Scratch, ScratchDesign, make_scratch
from transferkit.config.initializers import parse_initializer
from transferkit.lab.finding import Finding, Line, Panel
from transferkit.lab.trial import Network, best_of, by_layer, digits, epochs, make_network, train

RATES = (0.001, 0.003, 0.01, 0.03)


def gradients(network: Network) -> list[float]:
    """Return the norm of the loss gradient of each hidden layer's weights, from the lowest."""
    return [row["gradient_norm"] for row in by_layer(network, digits())[:-1]]


def activations(scale: float = 1.0) -> Finding:
    """Compare activations in a network of 20 layers, each with its matching initialiser.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    names, depth, number = ("logistic", "tanh", "relu", "leaky_relu", "elu", "selu"), 20, 8
    norms, runs, rates, dead = {}, {}, {}, {}
    for name in names:
        make = partial(make_network, ScratchDesign(depth, 64, name))
        norms[name] = gradients(make())
        rates[name], runs[name] = best_of(RATES, make, digits(), epochs(number, scale))
    network = make_network(ScratchDesign(depth, 64, "relu"))
    train(network, digits(), [network.stage(epochs(number, scale), max(RATES))])
    dead = [row["dead"] for row in by_layer(network, digits())[:-1]]
    low = min(names, key=lambda name: norms[name][0] / norms[name][-1])
    high = max(names, key=lambda name: runs[name].val[-1])
    ratio = norms[low][0] / norms[low][-1]
    kept = norms["relu"][0] / norms["relu"][-1]
    bound = 0.25 ** (depth - 1)
    return Finding(
        f"Activations in a network of {depth} layers",
        (
            Panel(
                "Gradient before training (dashed: 1/4 per layer)",
                "layer, from the lowest",
                "norm of the gradient",
                (
                    *(Line(name, norms[name]) for name in names),
                    Line(
                        "logistic",
                        [norms["logistic"][-1] * 0.25**n for n in reversed(range(depth))],
                        dashed=True,
                    ),
                ),
                "y",
            ),
            Panel(
                f"Accuracy, each at the best of {len(RATES)} rates",
                "epoch",
                "validation accuracy",
                tuple(Line(name, runs[name].val) for name in names),
                share=True,
            ),
        ),
        (
            f"Between the highest and the lowest of {depth} layers the gradient changes by a factor "
            f"of {ratio:.0e} with {low} ({bound:.0e} if each layer left a quarter, the most that "
            f"the logistic function lets through) and of {kept:.2g} with relu.",
            f"After {len(runs[high].val) - 1} epochs {high} is best with {runs[high].val[-1]:.0%}; "
            f"logistic has {runs['logistic'].val[-1]:.0%}, relu {runs['relu'].val[-1]:.0%}.",
            f"At the rate {max(RATES):g}, {np.mean(dead):.0%} of all ReLU units end up dead: zero "
            "for every digit, so that no gradient reaches their weights again.",
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
    """Send standard normal signals through 50 ReLU layers; theory beside what is measured.

    A layer multiplies the mean square by width * variance of its weights, of which ReLU leaves
    half. Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, section 2.2.
    """
    depth, width, networks = 50, 256 if scale < 1 else 512, max(2, round(6 * scale))
    names = ("he_normal", "glorot_normal", "orthogonal:1.414", "normal:0.01", "normal:1")
    side = 8
    images = torch.randn(64, 3 * side**2, generator=torch.Generator().manual_seed(0)).double()
    measured, theory = {}, {}
    for name in names:
        design = ScratchDesign(depth, width, initializer=name)
        every = [
            second_moments(make_scratch("mlp", design, side, seed), images)
            for seed in range(networks)
        ]
        measured[name] = list(np.mean(every, axis=0) / np.mean(every, axis=0)[0])
        gain = width * parse_initializer(name).variance(width, width) / 2
        theory[name] = [gain**n for n in range(depth)]
    ends = {name: measured[name][-1] for name in names}
    steady = min(names, key=lambda name: abs(np.log(ends[name])))
    small, large = min(names, key=ends.__getitem__), max(names, key=ends.__getitem__)
    off = max(
        abs(np.log(ends[name]) - np.log(theory[name][-1])) / (depth - 1) for name in names
    )
    lines = [Line(name, measured[name]) for name in names]
    lines += [Line(name, theory[name], dashed=True) for name in names]
    close = tuple(line for line in lines if line.name in ("he_normal", "orthogonal:1.414"))
    return Finding(
        f"Variance of a signal through {depth} ReLU layers of {width} units",
        (
            Panel("All (dashed: theory)", "layer", "variance, first layer = 1", tuple(lines), "y"),
            Panel("Those that keep it", "layer", "variance, first layer = 1", close),
        ),
        (
            f"After {depth} layers {steady} has {ends[steady]:.2g} times the first layer's "
            f"variance, he_normal {ends['he_normal']:.2g} times.",
            f"{large} multiplies it by {ends[large]:.0e}, {small} by {ends[small]:.0e}: nothing "
            "that a learning rate could make up for.",
            "Theory says that a ReLU layer multiplies the variance by width · Var(w) / 2; what was "
            f"measured differs from it by at most {np.expm1(off):.1%} per layer.",
        ),
    )


def batchnorm(scale: float = 1.0) -> Finding:
    """Train a network of 10 layers with and without batch norm at rates from small to large.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015.
    """
    depth, number = 10, epochs(8, scale)
    designs = {
        "without": ScratchDesign(depth, 64),
        "before activation": ScratchDesign(depth, 64, batchnorm=("before",)),
        "after activation": ScratchDesign(depth, 64, batchnorm=("after",)),
    }
    rates = tuple(0.001 * 4**n for n in range(7))
    spans, ends, runs = {}, {}, {}
    for name, design in designs.items():
        stds = [row["activation_std"] for row in by_layer(make_network(design), digits())[:-1]]
        spans[name] = stds
        runs[name] = []
        for rate in rates:
            network = make_network(design)
            runs[name].append(train(network, digits(), [network.stage(number, rate)]))
        ends[name] = [run.val[-1] for run in runs[name]]
    good = 0.8
    usable = {
        name: [rate for rate, end in zip(rates, values, strict=True) if end >= good]
        for name, values in ends.items()
    }
    best = max(designs, key=lambda name: max(ends[name]))
    gap = {name: max(values) / min(values) for name, values in spans.items()}
    normed = "before activation"
    shown = {name: f"{min(u):.3g} to {max(u):.3g}" if u else "none" for name, u in usable.items()}
    return Finding(
        f"Batch norm in a network of {depth} layers",
        (
            Panel(
                f"Accuracy after {number} epochs",
                "learning rate",
                "validation accuracy",
                tuple(Line(name, ends[name], rates) for name in designs),
                "x",
                share=True,
            ),
            Panel(
                "Activations before training",
                "layer, from the lowest",
                "standard deviation",
                tuple(Line(name, spans[name]) for name in designs),
                "y",
            ),
        ),
        (
            f"Rates that reach {good:.0%} in {number} epochs: {shown['without']} without batch "
            f"norm, {shown[normed]} with it before the activation, {shown['after activation']} "
            "after it.",
            f"At its best rate {best} is highest with {max(ends[best]):.1%}; without batch norm "
            f"it is {max(ends['without']):.1%}.",
            "From layer to layer the activations' deviation differs by a factor of up to "
            f"{gap['without']:.2g} without and {gap[normed]:.2g} with batch norm.",
        ),
    )


def skip(scale: float = 1.0) -> Finding:
    """Compare 30 layers with and without skip connections, and 3 layers.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    designs = {
        f"{depth} layers{', skip' if skips else ''}": ScratchDesign(
            depth, 64, "relu", initializer="glorot_normal", skip=skips
        )
        for depth, skips in ((3, False), (30, False), (30, True))
    }
    norms, runs = {}, {}
    for name, design in designs.items():
        make = partial(make_network, design)
        norms[name] = gradients(make())
        _, runs[name] = best_of(RATES[:3], make, digits(), epochs(10, scale))
    shallow, plain, skipped = designs
    ends = {name: run.val[-1] for name, run in runs.items()}
    left = {name: values[0] / values[-1] for name, values in norms.items()}
    gain = ends[skipped] - ends[plain]
    return Finding(
        "Skip connections in a network of 30 layers",
        (
            Panel(
                "Gradient before training",
                "layer, from the lowest",
                "norm of the gradient",
                tuple(Line(name, norms[name]) for name in designs),
                "y",
            ),
            Panel(
                "Accuracy, each at its best rate",
                "epoch",
                "validation accuracy",
                tuple(Line(name, runs[name].val) for name in designs),
                share=True,
            ),
        ),
        (
            f"The lowest of 30 layers gets {left[plain]:.2g} times the gradient of the highest "
            f"without skip connections, {left[skipped]:.2g} times with them.",
            f"After {len(runs[plain].val) - 1} epochs 30 layers have {ends[skipped]:.1%} with and "
            f"{ends[plain]:.1%} without skip connections: {abs(gain) * 100:.1f} points "
            f"{'more' if gain >= 0 else 'fewer'}.",
            f"3 layers reach {ends[shallow]:.1%}, so the depth itself "
            + (
                f"costs {(ends[shallow] - ends[skipped]) * 100:.1f} points even with them."
                if ends[shallow] > ends[skipped]
                else f"gains {(ends[skipped] - ends[shallow]) * 100:.1f} points with them."
            ),
        ),
    )
