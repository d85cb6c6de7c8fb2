"""`--crop`, `--image-size` and `--mirror auto`: what leave-one-out prefers on some pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.backbones.block_groups import BlockGroup
from transferkit.backbones.create import Backbone
from transferkit.backbones.engine import choose_engine
from transferkit.backbones.head import Classifier
from transferkit.closed_form.depths import num_columns, top_depths
from transferkit.closed_form.judge import gain_of, squared
from transferkit.closed_form.left_out import Problem, Solution, left_out_scores, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config
from transferkit.data.framing import framed, framing, kept_share
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import ViewMaker
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_handles import cache_settings
from transferkit.training.depth_features import (
    USUAL_DEPTHS,
    DepthReader,
    KnownRows,
    make_reader,
    read_rows,
    reader_digest,
    tried_parts,
)
from transferkit.training.kept_features import kept_rows
from transferkit.training.material import Material
from transferkit.training.network import make_backbone

LEAST_PICTURES = 60
"""Of fewer training pictures leave-one-out says too little to choose by."""
CLEARLY = 1.0
"""Standard errors by which another input has to be better than the best one before it.

But a larger size need only not be worse by so many where blocks train: on photographs these gain
more from it than frozen features show (flowers 93.0 -> 95.0 %, where features say 92.0 -> 92.5 %).
"""
WHOLE = 0.9
"""Share of the area that is seen anyway: other framings would show the same."""
WHOLE_PICTURE = ("squash", "pad")
LARGER, STEP_PX = 9 / 7, 32
"""The larger input size, 288 px for 224, is a multiple of `STEP_PX`."""


@dataclass(frozen=True)
class InputChoice:
    """The framing and input size to take, and what to say of them.

    side_px: None for the backbone's own size. mirror: average with the mirror image. known: the
    features that were read so.
    """

    crop: str
    side_px: int | None
    mirror: bool
    size: Preprocessing
    text: str
    known: KnownRows | None


@dataclass(frozen=True)
class Bench:
    """What all ways to see the pictures are tried on.

    parts: positions of training pictures, see `tried_parts`.
    """

    config: Config
    index: DatasetIndex
    groups: Sequence[BlockGroup]
    device: torch.device
    watch: Stopwatch
    parts: Sequence[np.ndarray]


@dataclass(frozen=True)
class Trial:
    """One way to see the pictures. rows: position -> features that were read.

    losses: number of pictures -> their leave-one-out squared errors (n,); accuracies: of the same.
    """

    crop: str
    size: Preprocessing
    mirror: bool
    reader: DepthReader
    rows: dict[int, Tensor] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    accuracies: dict[int, float] = field(default_factory=dict)

    @property
    def described(self) -> str:
        """Framing, accuracy and the number of pictures in words."""
        most = max(self.accuracies)
        mirrored = ", mirrored" * self.mirror
        return f"{framing(self.size)}{mirrored} {self.accuracies[most]:.1%} of {most}"


def can_choose(config: Config, index: DatasetIndex) -> bool:
    """Whether anything is to be chosen, and there is what to judge it by."""
    options, mirror = config.backbone, config.solve.mirror if config.solves else "off"
    wanted = "auto" in (options.crop, options.image_size, mirror)
    enough = len(index.of_split("train")) >= LEAST_PICTURES
    return wanted and enough and not options.starts_random


def choose_input(
    config: Config,
    index: DatasetIndex,
    backbone: Backbone,
    groups: Sequence[BlockGroup],
    device: torch.device,
    watch: Stopwatch,
) -> InputChoice:
    """Judge framings, a larger input size, then mirroring, each against the best before it.

    groups: of the backbone, from the stem to the top.
    """
    train = index.of_split("train")
    bench = Bench(config, index, groups, device, watch, tried_parts(index.labels, train))
    own = backbone.preprocessing
    first, *others = framings(bench, own)
    best = begin_with_kept(bench, backbone, first)
    trials = [best]
    for crop in others:
        trials.append(begin_with_kept(bench, backbone, crop, best.reader))
        best = trials[-1] if is_better(bench, trials[-1], best, CLEARLY) else best
        if len(trials[-1].losses) == 1:  # not even the few speak for seeing all
            break
    if larger := larger_backbone(config, own, index.sizes[train]):
        trials.append(begin_with_kept(bench, larger, best.crop))
        errors = CLEARLY if config.only_solves else -CLEARLY
        if is_better(bench, trials[-1], best, errors):
            best, backbone = trials[-1], larger
    if config.solve.mirror == "auto":
        mirrored = replace(bench, config=with_mirror(config, True))
        trials.append(begin_with_kept(mirrored, backbone, best.crop))
        best = trials[-1] if is_better(bench, trials[-1], best, CLEARLY) else best
    judge(bench, best, np.concatenate(bench.parts))
    shown = ", ".join(trial.described for trial in trials)
    text = f"pictures: {framing(best.size)}, by leave-one-out accuracy: {shown} training pictures"
    known = KnownRows(best.reader.digest, best.rows, best.reader)
    side_px = best.size.width_px if best.size.width_px != own.width_px else None
    return InputChoice(best.crop, side_px, best.mirror, best.size, text, known)


def with_mirror(config: Config, mirror: bool) -> Config:
    """Put a choice in the place of `--mirror auto`."""
    if config.solve.mirror != "auto":
        return config
    return replace(config, solve=replace(config.solve, mirror="on" if mirror else "off"))


def framings(bench: Bench, own: Preprocessing) -> tuple[str, ...]:
    """Return the values of `--crop` to try, the first one first."""
    wanted, index = bench.config.backbone.crop, bench.index
    if wanted != "auto":
        return (wanted,)
    share = kept_share(index.sizes[index.of_split("train")], own)
    return ("backbone", *WHOLE_PICTURE) if share < WHOLE else ("backbone",)


def larger_backbone(config: Config, own: Preprocessing, sizes: np.ndarray) -> Backbone | None:
    """Return the backbone at a larger input size where that is to be tried; else None.

    sizes: (N, 2) of the pictures; those of less than the usual size gain nothing by enlarging.
    """
    if config.backbone.image_size != "auto" or own.height_px != own.width_px:
        return None
    if np.median(sizes.min(axis=1)) < own.width_px:
        return None
    side_px = round(own.width_px * LARGER / STEP_PX) * STEP_PX
    larger = replace(config, backbone=replace(config.backbone, image_size=side_px))
    try:
        return make_backbone(larger, config.backbone.pretrained, config.backbone.weights)
    except UserError:  # of a fixed size
        return None


def begin(bench: Bench, backbone: Backbone, crop: str, reader: DepthReader | None = None) -> Trial:
    """Prepare to see the pictures in one way. reader: of the same backbone, if there is one."""
    config, device, mirror = bench.config, bench.device, bench.config.solve.mirrors
    size = framed(backbone.preprocessing, crop, config.backbone.crop_share)
    classifier = Classifier(backbone.model, nn.Identity(), size.mean, size.std).to(device)
    if reader is not None:
        digest = reader_digest(classifier, size, config.solve)
        return Trial(crop, size, mirror, replace(reader, digest=digest))
    count = len(bench.index.of_split("train")) + len(bench.index.of_split("val"))
    engine = choose_engine(config.device.engine, device, count)
    made = make_reader(classifier, bench.groups, size, config.solve, engine, device)
    return Trial(crop, size, mirror, made)


def begin_with_kept(
    bench: Bench, backbone: Backbone, crop: str, reader: DepthReader | None = None
) -> Trial:
    """Prepare as `begin`, with the features that an earlier choice has kept."""
    trial, cache = begin(bench, backbone, crop, reader), cache_settings(bench.config)
    if cache.enabled and processes.count() == 1:
        trial.rows.update(kept_rows(cache.root, trial.reader, bench.index))
    return trial


def is_better(bench: Bench, rival: Trial, best: Trial, errors: float) -> bool:
    """Whether leave-one-out prefers a rival by so many errors; only a promising one sees all."""
    for end in range(1, len(bench.parts) + 1):
        positions = np.concatenate(bench.parts[:end])
        for trial in (rival, best):
            judge(bench, trial, positions)
        gain, error = gain_of(rival.losses[len(positions)], best.losses[len(positions)])
        if gain <= min(errors, 0) * error:
            return False
    return gain > errors * error


def judge(bench: Bench, trial: Trial, positions: np.ndarray) -> None:
    """Solve on the pictures at these positions, every one left out in turn."""
    count = len(positions)
    if count in trial.losses:
        return
    read(bench, trial, positions)
    problem, found = solved(bench, trial, positions)
    scores = left_out_scores(found.spectrum, problem, found.penalty)
    trial.losses[count] = squared(scores, problem.targets)
    right = scores.argmax(1) == problem.targets.argmax(1)
    trial.accuracies[count] = float(right.double().mean())


def read(bench: Bench, trial: Trial, positions: np.ndarray) -> None:
    """Read the features of the pictures at these positions that are not there yet."""
    make = Material(bench.index, ViewMaker(trial.size, reading=bench.index.reading), 1, 1).make
    trial.rows.update(read_rows(trial.reader, make, trial.rows, positions, bench.watch))


def solved(bench: Bench, trial: Trial, positions: np.ndarray) -> tuple[Problem, Solution]:
    """Solve on the pictures at these positions, which were read."""
    depths = top_depths(trial.reader.depths, USUAL_DEPTHS)
    targets = one_hot(torch.from_numpy(bench.index.labels[positions]), len(bench.index.classes))
    groups = None if bench.index.groups is None else torch.from_numpy(bench.index.groups[positions])
    problem = Problem(features_of(trial, positions), targets, groups=groups)
    return problem, solve(problem, [depth.columns for depth in depths])


def features_of(trial: Trial, positions: np.ndarray) -> Tensor:
    """Return features (N, D) of the usual depths of pictures that were read."""
    width = num_columns(top_depths(trial.reader.depths, USUAL_DEPTHS))
    return torch.stack([trial.rows[int(p)] for p in positions])[:, -width:]
