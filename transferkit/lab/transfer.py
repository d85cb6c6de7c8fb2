"""What a pretrained backbone brings to new pictures: which parts to train, what its depths hold."""

import functools

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.block_groups import BlockGroup
from transferkit.backbones.create import create_backbone
from transferkit.backbones.head import Classifier, make_head
from transferkit.closed_form.depths import find_depths, read_depths
from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config, ScheduleOptions, Stage
from transferkit.lab.finding import Finding, Panel, lines, top
from transferkit.lab.trial import CLASSES, Digits, Network, accuracies, digits, epochs, train
from transferkit.training.network import block_groups, random_images
from transferkit.training.schedules import make_schedule
from transferkit.training.stages import make_plan
from transferkit.training.updates import Rules

BACKBONE, SIDE_PX = "tf_efficientnet_lite0", 48
PER_CLASS, JUDGED = 20, 400


def few(per_class: int = PER_CLASS, judged: int = JUDGED) -> Digits:
    """Return a few digits of every class at the backbone's input size."""
    data = digits(SIDE_PX).of_classes(range(CLASSES), per_class)
    picks = np.random.default_rng(0).permutation(len(data.val_labels))[:judged]
    return Digits(data.images, data.labels, data.val_images[picks], data.val_labels[picks])


@functools.cache
def groups() -> tuple[BlockGroup, ...]:
    """Return the block groups of the default backbone."""
    return block_groups(create_backbone(BACKBONE, image_size=SIDE_PX))


def pretrained_network() -> Network:
    """Return the default backbone under a new head."""
    backbone = create_backbone(BACKBONE, image_size=SIDE_PX)
    size, head = backbone.preprocessing, make_head(backbone.num_features, CLASSES)
    classifier = Classifier(backbone.model, head, size.mean, size.std)
    return Network(classifier, tuple(group.modules for group in groups()))


def freezing(scale: float = 1.0) -> Finding:
    """Train the head alone, everything at once, or the blocks progressively, as `--stages` does.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018; Kumar et al.,
    "Fine-Tuning can Distort Pretrained Features", ICLR 2022.
    """
    number = epochs(9, scale)
    third = max(1, number // 3)
    rest, runs = max(1, number - 2 * third), {}
    data = few(judged=200) if scale >= 1 else few(5, 50)
    for name, stages in {
        "frozen": (Stage("head", number),),
        "unfrozen at once": (Stage("all", number),),
        "progressively": (Stage("head", third), Stage(2, third), Stage("all", rest)),
    }.items():
        plan = make_plan(Config(stages=stages), [group.name for group in groups()])
        schedule = make_schedule(ScheduleOptions(), None, True)
        runs[name] = train(pretrained_network(), data, plan.stages, Rules(), schedule)
    ends = {name: run.val[-1] for name, run in runs.items()}
    early = {name: run.val[third] for name, run in runs.items()}
    once, frozen_early, frozen_end = "unfrozen at once", early["frozen"], ends["frozen"]
    apart = ends["progressively"] - ends[once]
    steps = third * (len(runs["frozen"].losses) // number)
    return Finding(
        f"{BACKBONE}, pretrained on photographs, learns {len(data.labels)} digits",
        (
            accuracies("Pictures that it trains on", runs, train=True),
            accuracies(f"{len(data.val_labels)} others", runs),
        ),
        (
            f"After {third} epochs {top(early)} is ahead with {early[top(early)]:.1%} (frozen "
            f"{frozen_early:.1%}, unfrozen at once {early[once]:.1%}).",
            f"After {number} epochs {top(ends)} is best with {ends[top(ends)]:.1%}, "
            f"{(ends[top(ends)] - frozen_end) * 100:.1f} points above the frozen backbone's "
            f"{frozen_end:.1%}.",
            f"Progressive unfreezing ends {abs(apart) * 100:.1f} points "
            f"{'above' if apart >= 0 else 'below'} unfreezing at once; its first {steps} steps "
            "train the head alone, for which activations are computed once and kept.",
        ),
    )


def depth_features(pretrained: bool, images: Tensor) -> tuple[list[str], list[Tensor]]:
    """Return the names of a backbone's depths and the features (N, C) of pictures at each."""
    backbone = create_backbone(BACKBONE, pretrained=pretrained, image_size=SIDE_PX)
    size = backbone.preprocessing
    depths = find_depths(backbone.model, groups(), random_images(backbone))
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
    data = few() if scale >= 1 else few(5, 50)
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
