"""What keeps a network from learning pictures by heart, and how it knows what it does not know."""

from dataclasses import replace

import numpy as np
import torch

from transferkit.backbones.scratch import ScratchDesign
from transferkit.evaluation.selective import detection_auroc
from transferkit.inference.dropout import network_samples
from transferkit.inference.uncertainty import uncertainty_of
from transferkit.lab.finding import Finding, Panel, top
from transferkit.lab.trial import Digits, accuracies, digits, epochs, make_network, train
from transferkit.training.regularizers import Strengths
from transferkit.training.updates import Rules


def few_noisy(count: int = 200, wrong: float = 0.2) -> Digits:
    """Return few digits to learn from, of whose labels a share is wrong: much to overfit."""
    data, generator = digits(), np.random.default_rng(1)
    labels = data.labels[:count].clone()
    at = torch.from_numpy(generator.permutation(count)[: round(wrong * count)])
    labels[at] = (labels[at] + torch.from_numpy(generator.integers(1, 10, len(at)))) % 10
    return replace(data, images=data.images[:count], labels=labels)


def regularization(scale: float = 1.0) -> Finding:
    """Train a wide network on 200 digits, a fifth of them labelled wrong, with each remedy.

    Source: Srivastava et al., "Dropout", JMLR 2014, on dropout and max-norm.
    """
    number, plain = epochs(60, scale), Rules("adam", weight_decays=(0.0, 0.0))
    remedies = {
        "none": plain,
        "L2": replace(plain, penalties=Strengths(backbone_l2=0.05, head_l2=0.05)),
        "L1": replace(plain, penalties=Strengths(backbone_l1=0.004, head_l1=0.004)),
        "max-norm": replace(plain, max_norm=("all", 0.3)),
        "dropout": plain,
    }
    runs, zeros, sizes = {}, {}, {}
    for name, rules in remedies.items():
        network = make_network(ScratchDesign(2, 256, dropout=0.5 if name == "dropout" else 0.0))
        runs[name] = train(network, few_noisy(), [network.stage(number, 0.001)], rules)
        weights = torch.cat(
            [p.flatten() for p in network.classifier.parameters() if p.ndim > 1]
        ).detach()
        zeros[name] = float((weights == 0).float().mean())
        sizes[name] = float(weights.square().mean().sqrt())
    ends = {name: run.val[-1] for name, run in runs.items()}
    best, peak = top(ends), int(np.argmax(runs["none"].val))
    stop = runs["none"].val[peak]
    return Finding(
        "Regularisation on 200 digits, a fifth of them labelled wrong",
        (
            accuracies("Training pictures, a fifth wrong", runs, train=True, bottom=0.5),
            accuracies("Others, all labelled right", runs, bottom=0.7),
        ),
        (
            f"Without a remedy the network learns {runs['none'].train[-1]:.0%} of its training "
            f"labels, wrong ones included, and gets {ends['none']:.1%} of other digits right; "
            f"with the best remedy, {best}, these are {runs[best].train[-1]:.0%} and "
            f"{ends[best]:.1%}.",
            f"L1 leaves {zeros['L1']:.0%} of the weights at exactly zero, L2 {zeros['L2']:.0%}; "
            f"their root mean square is {sizes['none']:.3f} without and {sizes['L2']:.3f} with L2.",
            f"Stopped early, after epoch {peak} of {number}, the network without a remedy would "
            f"have had {stop:.1%}, {abs(stop - ends[best]) * 100:.1f} points "
            f"{'more' if stop >= ends[best] else 'fewer'} than with {best} at the end.",
        ),
    )


def dropout(scale: float = 1.0) -> Finding:
    """Sample a network trained on nine digits, on digits that it knows and on the tenth.

    Shown is of each kind the picture in the middle by mutual information.
    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
    """
    unknown, samples = 4, max(4, round(50 * scale))
    known = [digit for digit in range(10) if digit != unknown]
    data, strange = digits().of_classes(known), digits().of_classes([unknown])
    network = make_network(ScratchDesign(2, 128, dropout=0.5), classes=len(known))
    run = train(network, data, [network.stage(epochs(20, scale), 0.02)])
    images = torch.cat([data.val_images, strange.val_images])
    is_strange = np.arange(len(images)) >= len(data.val_images)
    classifier = network.classifier.eval()
    logits = network_samples(classifier, images, range(len(images)), samples, 0)
    sampled = logits.softmax(-1).double().numpy()  # (N, S, K)
    found = uncertainty_of(sampled)
    first = found.mean.argmax(1)
    spread = found.std[np.arange(len(images)), first]
    shown = []
    for positions in (np.flatnonzero(~is_strange), np.flatnonzero(is_strange)):
        order = np.argsort(found.mutual_information[positions])
        shown.append(positions[order[len(positions) // 2]])
    titles = ("A digit that it knows", f"A {unknown}, which it never saw")
    told = [
        f"a {known[first[at]]} with {found.mean[at].max():.0%} ± {spread[at]:.0%}" for at in shown
    ]
    usual, odd = float(spread[~is_strange].mean()), float(spread[is_strange].mean())
    return Finding(
        f"MC dropout of a network that never saw a {unknown}",
        tuple(
            Panel(
                title,
                f"probability: {samples} samples, bar: their mean",
                "digit",
                bars={str(d): sampled[at, :, k].tolist() for k, d in enumerate(known)},
                picture=images[at, 0].numpy(),
            )
            for at, title in zip(shown, titles, strict=True)
        ),
        (
            f"The known digit is taken for {told[0]} (deviation over {samples} samples), the "
            f"unknown {unknown} for {told[1]}.",
            f"Over all pictures the deviation of the first class is {usual:.3f} for known digits, "
            f"of which {run.val[-1]:.1%} are right, and {odd:.3f} for the unknown one, "
            f"{odd / usual:.1f} times as much.",
            f"Mutual information tells a {unknown} from known digits with an AUROC of "
            f"{detection_auroc(found.mutual_information, is_strange):.3f}; guessing has 0.5.",
        ),
    )
