"""What holds a network back from learning its pictures by heart, and knows what it does not know."""

from dataclasses import replace

import numpy as np
import torch

from transferkit.backbones.scratch import ScratchDesign
from transferkit.evaluation.selective import detection_auroc
from transferkit.inference.dropout import network_samples
from transferkit.inference.uncertainty import uncertainty_of
from transferkit.lab.finding import Bar, Finding, Line, Panel
from transferkit.lab.trial import Digits, History, digits, epochs, make_network, train
from transferkit.training.regularizers import Strengths
from transferkit.training.updates import Rules

SAMPLES = 50
NEARLY_ZERO = 1e-3


def few_noisy(count: int = 200, wrong: float = 0.2) -> Digits:
    """Return few digits to learn from, of whose labels a share is wrong: much to overfit."""
    data = digits()
    generator = np.random.default_rng(1)
    labels = data.labels[:count].clone()
    at = torch.from_numpy(generator.permutation(count)[: round(wrong * count)])
    labels[at] = (labels[at] + torch.from_numpy(generator.integers(1, 10, len(at)))) % 10
    return replace(data, images=data.images[:count], labels=labels)


def regularization(scale: float = 1.0) -> Finding:
    """Train a wide network on 200 digits, a fifth of them labelled wrong, with each remedy.

    Source: Srivastava et al., "Dropout", JMLR 2014, on dropout and max-norm.
    """
    number, plain = epochs(100, scale), Rules("adam", weight_decays=(0.0, 0.0))
    l1 = Strengths(backbone_l1=3e-4, head_l1=3e-4)
    remedies = {
        "none": (plain, 0.0),
        "L2": (replace(plain, penalties=Strengths(backbone_l2=1e-2, head_l2=1e-2)), 0.0),
        "L1": (replace(plain, penalties=l1), 0.0),
        "max-norm": (replace(plain, max_norm=("all", 0.5)), 0.0),
        "dropout": (plain, 0.5),
    }
    data = few_noisy()
    runs: dict[str, History] = {}
    zeros, sizes = {}, {}
    for name, (rules, rate) in remedies.items():
        network = make_network(ScratchDesign(2, 256, dropout=rate))
        runs[name] = train(network, data, [network.stage(number, 0.001)], rules)
        weights = torch.cat([p.flatten() for p in network.classifier.parameters() if p.ndim > 1])
        zeros[name] = float((weights == 0).float().mean())
        sizes[name] = float(weights.square().mean().sqrt())
    ends = {name: run.val[-1] for name, run in runs.items()}
    gaps = {name: run.train[-1] - run.val[-1] for name, run in runs.items()}
    best = max(ends, key=ends.__getitem__)
    peak = int(np.argmax(runs["none"].val))
    stop = runs["none"].val[peak]
    return Finding(
        "Regularisation on 200 digits, a fifth of them labelled wrong",
        (
            Panel(
                "Training pictures (a fifth wrong)",
                "epoch",
                "training accuracy",
                tuple(Line(name, run.train) for name, run in runs.items()),
                share=True,
            ),
            Panel(
                "Others (all labelled right)",
                "epoch",
                "validation accuracy",
                tuple(Line(name, run.val) for name, run in runs.items()),
                share=True,
            ),
        ),
        (
            f"Without a remedy the network learns {runs['none'].train[-1]:.0%} of its training "
            f"labels, wrong ones included, and gets {ends['none']:.1%} of other digits right; "
            f"{best} gets {ends[best]:.1%}.",
            f"L1 leaves {zeros['L1']:.0%} of the weights at exactly zero, L2 {zeros['L2']:.0%}; the "
            f"weights' root mean square is {sizes['none']:.3f} without, {sizes['L2']:.3f} with L2.",
            f"Stopped early, at its best epoch {peak} of {number}, the unregularised network would "
            f"have had {stop:.1%}, {abs(stop - ends[best]) * 100:.1f} points "
            f"{'more' if stop >= ends[best] else 'fewer'} than {best} at the end.",
        ),
    )


def dropout(scale: float = 1.0) -> Finding:
    """Sample a network trained on nine digits, on digits that it knows and on the tenth.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
    """
    unknown, number = 4, epochs(20, scale)
    known = [digit for digit in range(10) if digit != unknown]
    data, strange = digits().of_classes(known), digits().of_classes([unknown])
    network = make_network(ScratchDesign(2, 128, dropout=0.5), classes=len(known))
    run = train(network, data, [network.stage(number, 0.02)])
    images = torch.cat([data.val_images, strange.val_images])
    is_strange = np.arange(len(images)) >= len(data.val_images)
    logits = network_samples(
        network.classifier.eval(), images, range(len(images)), max(4, round(SAMPLES * scale)), 0
    )
    found = uncertainty_of(logits.softmax(-1).double().numpy())
    information = found.mutual_information
    spread = found.std[np.arange(len(images)), found.mean.argmax(1)]
    # of each kind the picture in the middle
    shown = [
        int(positions[np.argsort(information[positions])[len(positions) // 2]])
        for positions in (np.flatnonzero(~is_strange), np.flatnonzero(is_strange))
    ]
    auroc = detection_auroc(information, is_strange)
    tops = [known[int(found.mean[at].argmax())] for at in shown]
    panels = [
        Panel(
            title,
            "mean probability, whisker: deviation over samples",
            "digit",
            share=True,
            bars=tuple(
                Bar(str(d), float(m), float(s))
                for d, m, s in zip(known, found.mean[at], found.std[at], strict=True)
            ),
            picture=images[at, 0].numpy(),
        )
        for at, title in zip(shown, ("A digit that it knows", "One that it never saw"), strict=True)
    ]
    means = [float(spread[~is_strange].mean()), float(spread[is_strange].mean())]
    return Finding(
        f"MC dropout of a network that never saw a {unknown}",
        tuple(panels),
        (
            f"The known digit is a {tops[0]} with {found.mean[shown[0]].max():.0%} ± "
            f"{spread[shown[0]]:.0%} over {logits.shape[1]} samples; the unknown {unknown} is taken "
            f"for a {tops[1]} with {found.mean[shown[1]].max():.0%} ± {spread[shown[1]]:.0%}.",
            f"Over all pictures the deviation of the first class is {means[0]:.3f} for known digits "
            f"(accuracy {run.val[-1]:.1%}) and {means[1]:.3f} for the unknown one, "
            f"{means[1] / means[0]:.1f} times as much.",
            f"Mutual information tells a {unknown} from a known digit with an AUROC of "
            f"{auroc:.3f}; guessing would have 0.5.",
        ),
    )
