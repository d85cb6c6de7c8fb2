"""What a pretrained backbone brings to new pictures: which parts to train, what its depths hold."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.create import create_backbone
from transferkit.backbones.head import Classifier
from transferkit.backbones.scratch import ScratchDesign
from transferkit.closed_form.depths import find_depths, read_depths
from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config, ScheduleOptions, Stage, Training
from transferkit.lab.finding import Finding, Panel, lines, top
from transferkit.lab.trial import (
    CLASSES,
    Digits,
    History,
    Network,
    accuracies,
    digits,
    epochs,
    make_network,
    train,
)
from transferkit.training.network import block_groups, random_images
from transferkit.training.schedules import make_schedule
from transferkit.training.stages import make_plan
from transferkit.training.updates import Rules

BACKBONE, SIDE_PX = "tf_efficientnet_lite0", 48
SMALL, SMALL_PX = ScratchDesign(4, 16, batchnorm=("before",)), 16
RATES = Training(lr=0.03, unfrozen_lr=0.01)


def adapted(source: Network | None, data: Digits, stages: tuple[Stage, ...]) -> History:
    """Train a copy of a small cnn, or a random one, under a new head in the stages of a plan."""
    network = make_network(SMALL, "cnn", SMALL_PX, classes=5)
    if source is not None:
        state = source.classifier.backbone.state_dict()
        network.classifier.backbone.load_state_dict(state)
    plan = make_plan(Config(stages=stages, training=RATES), [group for (group,) in network.groups])
    schedule = make_schedule(ScheduleOptions(), None, True)
    return train(network, data, plan.stages, Rules(), schedule)


def freezing(scale: float = 1.0) -> Finding:
    """Let a small cnn that knows the digits 0 to 4 learn 5 to 9 from two pictures of each.

    The head alone, everything at once, or the blocks progressively, as `--stages` does, and from
    random weights; means over disjoint sets of pictures.
    Source: Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018; Yosinski et al.,
    "How transferable are features in deep neural networks?", NeurIPS 2014.
    """
    third, per_class, every = epochs(10, scale), 2, digits(SMALL_PX)
    number, rounds = 3 * third, max(2, round(5 * scale))
    source, runs = make_network(SMALL, "cnn", SMALL_PX, classes=5), {}
    train(source, every.of_classes(range(5)), [source.stage(epochs(5, scale), 0.02)])
    for name, stages in {
        "frozen": (Stage("head", number),),
        "unfrozen at once": (Stage("all", number),),
        "progressively": (Stage("head", third), Stage(2, third), Stage("all", third)),
        "random weights": (Stage("all", number),),
    }.items():
        start, found = None if name == "random weights" else source, []
        for turn in range(rounds):
            part = every.of_classes(range(5, 10), per_class, turn * per_class)
            found.append(adapted(start, part, stages))
        val, known = (np.mean([getattr(f, n) for f in found], 0) for n in ("val", "train"))
        runs[name] = History(val=val.tolist(), train=known.tolist())
    ends = {name: run.val[-1] for name, run in runs.items()}
    early = {name: run.val[third] for name, run in runs.items()}
    once, apart = "unfrozen at once", ends["progressively"] - ends["unfrozen at once"]
    return Finding(
        f"A cnn that knows 0 to 4 learns 5 to 9 from {per_class} pictures each",
        (
            accuracies("Pictures that it trains on", runs, train=True),
            accuracies(f"Others, means over {rounds} rounds", runs),
        ),
        (
            f"After {third} steps {top(early)} is ahead with {early[top(early)]:.1%}: frozen "
            f"{early['frozen']:.1%}, unfrozen at once {early[once]:.1%}, from random weights "
            f"{early['random weights']:.1%}.",
            f"After {number} steps {top(ends)} is best with {ends[top(ends)]:.1%}; the frozen "
            f"backbone ends at {ends['frozen']:.1%}, random weights at "
            f"{ends['random weights']:.1%}.",
            f"Progressive unfreezing ends {abs(apart) * 100:.1f} points "
            f"{'above' if apart >= 0 else 'below'} unfreezing at once; its first {third} steps "
            "train the head alone, for which activations are computed once and kept.",
        ),
    )


def depth_features(pretrained: bool, images: Tensor) -> tuple[list[str], list[Tensor]]:
    """Return the names of a backbone's depths and the features (N, C) of pictures at each."""
    backbone = create_backbone(BACKBONE, pretrained=pretrained, image_size=SIDE_PX)
    size = backbone.preprocessing
    depths = find_depths(backbone.model, block_groups(backbone), random_images(backbone))
    twin = Classifier(backbone.model, torch.nn.Identity(), size.mean, size.std).eval()
    with torch.no_grad():
        read = torch.cat(
            [read_depths(twin.backbone, depths, twin.normalize(p)) for p in images.split(100)]
        )
    return [depth.name for depth in depths], [*read.split([d.columns for d in depths], 1)]


def solved_accuracy(features: list[Tensor], labels: Tensor, count: int) -> float:
    """Solve on the first `count` pictures; return the share of the others that is right.

    features: of one depth (N, C) or several, side by side.
    """
    both = torch.cat(features, 1)
    problem = Problem(both[:count], one_hot(labels[:count], int(labels.max()) + 1))
    solution = solve(problem, [part.shape[1] for part in features])
    weight, bias = solution.spectrum.linear(solution.penalty)
    scores = both[count:].double() @ weight.T + bias
    return float((scores.argmax(1) == labels[count:]).double().mean())


def depths(scale: float = 1.0) -> Finding:
    """Solve on each depth of a backbone alone, pretrained and random, for two questions.

    Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014;
    Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
    """
    per_class, judged = (20, 400) if scale >= 1 else (5, 50)
    data = digits(SIDE_PX).of_classes(range(CLASSES), per_class)
    picks = np.random.default_rng(0).permutation(len(data.val_labels))[:judged]
    data = replace(data, val_images=data.val_images[picks], val_labels=data.val_labels[picks])
    images, count = torch.cat([data.images, data.val_images]), len(data.labels)
    digit = torch.cat([data.labels, data.val_labels])
    ink = images[:, 0].float().mean((1, 2))
    quarter = torch.bucketize(ink, ink.quantile(torch.tensor([0.25, 0.5, 0.75])))
    found, together = {}, {}
    names: list[str] = []
    for weights in ("pretrained", "random"):
        names, features = depth_features(weights == "pretrained", images)
        for question, labels in (("digit", digit), ("ink", quarter)):
            found[weights, question] = [solved_accuracy([f], labels, count) for f in features]
            together[weights, question] = solved_accuracy(features, labels, count)
    known, inked = found["pretrained", "digit"], found["pretrained", "ink"]
    best, inkiest = int(np.argmax(known)), int(np.argmax(inked))
    gain = together["pretrained", "digit"] - known[best]

    def panel(question: str, title: str) -> Panel:
        own = {w: found[w, question] for w in ("pretrained", "random")}
        flat = {w: [together[w, question]] * len(names) for w in own}
        curves = (*lines(own), *lines(flat, dashed=True))
        accuracy = f"accuracy on {len(digit) - count} others"
        return Panel(title, "depth, from the lowest", accuracy, curves, share=True)

    return Finding(
        f"A solve on each depth of {BACKBONE} alone, from {count} digits",
        (
            panel("digit", "Which digit? dashed: all depths"),
            panel("ink", "How much ink, in quarters?"),
        ),
        (
            f"Which digit it is, depth {best} ({names[best]}) of 0 to {len(known) - 1} says best, "
            f"with {known[best]:.1%}; the output has {known[-1]:.1%}.",
            f"All depths together have {together['pretrained', 'digit']:.1%}, "
            f"{abs(gain) * 100:.1f} points {'more' if gain >= 0 else 'fewer'} than the best alone; "
            f"with random weights the best depth has {max(found['random', 'digit']):.1%}.",
            f"How much ink there is, depth {inkiest} ({names[inkiest]}) says best, with "
            f"{inked[inkiest]:.1%}; the output has {inked[-1]:.1%}.",
        ),
    )
