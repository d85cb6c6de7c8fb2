"""`choose` and `--backbone auto`: backbones, input sizes and framings by leave-one-out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferkit import processes
from transferkit.backbones.candidates import KNOWN, find_candidates
from transferkit.backbones.create import DEFAULT_BACKBONE, Backbone, resolve_name
from transferkit.closed_form.judge import gain_of
from transferkit.config import Config
from transferkit.config.network import AUTO
from transferkit.data.framing import CROP_MODES, framed, framing
from transferkit.data.index import DatasetIndex
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, Working
from transferkit.finetuning.input_choice import (
    LEAST_PICTURES,
    Bench,
    Trial,
    begin,
    features_of,
    framings,
    judge,
    larger_backbone,
    read,
    solved,
)
from transferkit.stopwatch import OUTSIDE, Stopwatch
from transferkit.training.cache_handles import cache_settings
from transferkit.training.depth_features import MOST_TRIED, tried_parts
from transferkit.training.kept_features import keep_rows
from transferkit.training.material import spread_over_classes
from transferkit.training.network import block_groups, make_backbone

OFFLINE = "pip install 'transferkit[offline]'"


@dataclass(frozen=True)
class Row:
    """A backbone at an input size and framing, and what came out.

    crop, image_size: as `finetune` takes them. accuracies: number of pictures -> by leave-one-out;
    accuracy, error: of the most pictures, and its standard error. val_accuracy: None where the row
    was dropped before. speed: pictures per second through the network, on this machine. imagenet:
    percent. features_s: expected for all training and validation pictures.
    """

    backbone: str
    crop: str
    image_size: int
    framing: str
    pictures: int
    loss: float
    accuracy: float
    error: float
    val_accuracy: float | None
    speed: float
    weights_bytes: int
    license: str
    imagenet: float | None
    features_s: float
    accuracies: dict[int, float]
    survived: bool = False


@dataclass(frozen=True)
class Choice:
    """All rows, the best by accuracy first; positions of the marked ones in them.

    smallest: of the fewest bytes among those within one standard error of the best. front: no other
    row is as accurate on the same pictures and as fast, and better in one of both.
    """

    rows: tuple[Row, ...]
    best: int
    smallest: int
    front: tuple[int, ...]
    not_tried: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Contest:
    """A row while it is tried. bench: has a watch of its own, which tells the row's speed."""

    bench: Bench
    trial: Trial
    backbone: Backbone


@dataclass
class Field:
    """The rows still in the running, and those that fell behind."""

    alive: list[Contest]
    done: list[Row]

    def halve(self, count: int) -> None:
        """Drop rows whose loss on so many pictures is higher than the best by over an error."""
        best = min((c.trial.losses[count] for c in self.alive), key=lambda loss: float(loss.mean()))
        every, self.alive = self.alive, []
        for contest in every:
            behind, error = gain_of(best, contest.trial.losses[count])
            if behind <= error:
                self.alive.append(contest)
            else:
                self.done.append(finished(contest, count))


def choose_backbone(
    config: Config,
    index: DatasetIndex,
    device: torch.device,
    show: Show,
    names: Sequence[str] = (),
    budget_s: float = math.inf,
) -> Choice:
    """Try backbones by successive halving over the pictures: rows are dropped as they fall behind.

    names: to try; none: what `find_candidates` gives, and the configured weights file. budget_s:
    after it nothing new is begun. Features are kept in the cache folder. Source: Jamieson and
    Talwalkar, "Non-stochastic Best Arm Identification", AISTATS 2016.
    """
    train, val = index.of_split("train"), index.of_split("val")
    if len(train) < LEAST_PICTURES:
        what = f"{len(train)} training pictures are too few to choose a backbone by"
        remedy = f"label {LEAST_PICTURES} or more, or take one: finetune --backbone"
        raise UserError(what, remedy=f"{remedy} {DEFAULT_BACKBONE}")
    watch, parts = Stopwatch(), tried_parts(index.labels, train)
    bench, field = Bench(config, index, (), device, watch, parts), Field([], [])
    skipped = tuple(first_rung(bench, field, candidates(config, names, show), budget_s, show))
    if not field.alive:
        raise UserError(
            "there is no backbone to try", remedy=f"name one: --backbones, or {OFFLINE}"
        )
    count = len(parts[0])
    for end in range(2, len(parts) + 1):
        positions = np.concatenate(parts[:end])
        for contest in field.alive:
            if watch.total() <= budget_s:
                judge(contest.bench, contest.trial, positions)
        if any(len(positions) not in contest.trial.losses for contest in field.alive):
            show(Notice(f"the time is over after {count} pictures for each backbone"))
            break
        count = len(positions)
        field.halve(count)
    for contest in field.alive:
        whole = count == sum(map(len, parts)) and len(val) and watch.total() <= budget_s
        accuracy = validated(contest, np.concatenate(parts), val) if whole else None
        field.done.append(replace(finished(contest, count), val_accuracy=accuracy, survived=True))
    return marked(field.done, skipped)


def candidates(
    config: Config, names: Sequence[str], show: Show
) -> list[tuple[str, Path | None, bool]]:
    """Return names, weights files, and whether a person has named them."""
    options = config.backbone
    own = [] if options.weights is None else [(options.name, options.weights, True)]
    for name in names:
        if replace(options, name=name, weights=None).starts_random:
            what = f"{name} has no pretrained weights to choose it by"
            raise usage_error(what, remedy="leave it out of --backbones")
        resolve_name(name)
    if names:
        return [*own, *((name, None, True) for name in names)]
    found, reason = find_candidates()
    if len(found) + len(own) == 1:
        text = f"only one backbone lies on this machine, and the hub does not answer ({reason})"
        show(Notice(f"{text}; for two more: {OFFLINE}", warning=True))
    return [*own, *((name, None, False) for name in found)]


def first_rung(
    bench: Bench,
    field: Field,
    wanted: Sequence[tuple[str, Path | None, bool]],
    budget_s: float,
    show: Show,
) -> Iterator[str]:
    """Try every row on the first pictures; yield what the time did not allow to begin."""
    for name, weights, named in wanted:
        if field.alive and bench.watch.total() > budget_s:
            yield name
            continue
        show(Working(f"reading pictures with {name}"))
        options = replace(bench.config.backbone, name=name, weights=weights)
        config = replace(bench.config, backbone=options)
        try:
            yield from first_rows(replace(bench, config=config), field, budget_s)
        except UserError as error:
            if named:
                raise
            show(Notice(f"{name} is left out: {error.what}", warning=True))


def first_rows(bench: Bench, field: Field, budget_s: float) -> Iterator[str]:
    """Try a backbone's framings and sizes on the first pictures; yield what was not begun.

    bench: with the backbone in its configuration.
    """
    count, config = len(bench.parts[0]), bench.config
    backbone = make_backbone(config, True, config.backbone.weights)
    own = replace(bench, groups=block_groups(backbone))
    sizes = bench.index.sizes[bench.index.of_split("train")]
    crops = framings(own, backbone.preprocessing)
    larger = larger_backbone(config, backbone.preprocessing, sizes)
    for network in (backbone, larger) if larger else (backbone,):
        tried: list[Contest] = []
        for crop in crops:
            if field.alive and bench.watch.total() > budget_s:
                way = framing(framed(network.preprocessing, crop, None))
                yield f"{config.backbone.name}, {way}"
                continue
            network.model.to(bench.device)
            each, reader = replace(own, watch=Stopwatch()), tried and tried[0].trial.reader
            tried.append(Contest(each, begin(each, network, crop, reader or None), network))
            judge(each, tried[-1].trial, bench.parts[0])
            field.alive.append(tried[-1])
            field.halve(count)
        if tried:  # the larger size is tried at the best framing
            crops = (min(tried, key=lambda c: float(c.trial.losses[count].mean())).trial.crop,)


def validated(contest: Contest, positions: np.ndarray, val: np.ndarray) -> float:
    """Return the accuracy on validation pictures of a solve on the pictures at these positions."""
    bench, trial = contest.bench, contest.trial
    labels = bench.index.labels
    val = val if len(val) <= MOST_TRIED else spread_over_classes(labels, val, MOST_TRIED)
    read(bench, trial, val)
    _, found = solved(bench, trial, positions)
    scores = found.spectrum.predict(features_of(trial, val), found.penalty)
    return float((scores.argmax(1).numpy() == labels[val]).mean())


def finished(contest: Contest, count: int) -> Row:
    """Return a row as the table has it, by its first `count` pictures; keep its features."""
    bench, trial, backbone = contest.bench, contest.trial, contest.backbone
    index, size = bench.index, trial.size
    train, val = index.of_split("train"), index.of_split("val")
    whole = len(val) <= MOST_TRIED  # a run reads validation pictures as a whole
    if (cache := cache_settings(bench.config)).enabled:
        mine = {p: row for p, row in trial.rows.items() if whole or index.splits[p] != "val"}
        keep_rows(cache.root, trial.reader, index, mine)
    spent = bench.watch.read()[OUTSIDE]
    seconds = spent["trunk"] + spent["pictures"]
    accuracy, known = trial.accuracies[count], KNOWN.get(backbone.name.removesuffix(".in1k"))
    known = known or KNOWN.get(backbone.name)
    return Row(
        backbone=backbone.name,
        crop=trial.crop,
        image_size=size.width_px,
        framing=next(name for name, mode in CROP_MODES.items() if mode == size.crop_mode),
        pictures=count,
        loss=float(trial.losses[count].mean()),
        accuracy=accuracy,
        error=math.sqrt(accuracy * (1 - accuracy) / count),
        val_accuracy=None,
        speed=len(trial.rows) / max(spent["trunk"], 1e-9),
        weights_bytes=sum(t.numel() * t.element_size() for t in backbone.model.parameters()),
        license=backbone.license,
        imagenet=known.imagenet if known else None,
        features_s=seconds / len(trial.rows) * (len(train) + len(val)),
        accuracies=dict(trial.accuracies),
    )


def marked(rows: Sequence[Row], not_tried: tuple[str, ...]) -> Choice:
    """Rank rows, those that saw most pictures first, and find the ones to mark."""
    rows = sorted(rows, key=lambda row: (-row.survived, -row.pictures, -row.accuracy, row.loss))
    best = rows[0]
    near = [r for r in rows if r.survived and r.accuracy >= best.accuracy - best.error]
    smallest = min(near, key=lambda row: row.weights_bytes)  # of equals the most accurate
    front = [n for n, row in enumerate(rows) if not any(beats(other, row) for other in rows)]
    return Choice(tuple(rows), 0, rows.index(smallest), tuple(front), not_tried)


def beats(row: Row, other: Row) -> bool:
    """Whether a row is as accurate on the same pictures and as fast, and better in one of both."""
    common = max(row.accuracies.keys() & other.accuracies.keys())
    ours = (row.accuracies[common], row.speed)
    theirs = (other.accuracies[common], other.speed)
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def with_backbone(config: Config, index: DatasetIndex, device: torch.device, show: Show) -> Config:
    """Put the smallest backbone within one error of the best in the place of `auto`."""
    if config.backbone.name != AUTO:
        return config
    choice = processes.from_first(choose_backbone, config, index, device, show)
    row, best = choice.rows[choice.smallest], choice.rows[choice.best]
    text = f"backbone: {row.backbone} at {row.image_size} px, {row.framing}, leave-one-out accuracy"
    text += f" {row.accuracy:.1%} of {row.pictures} pictures; smallest of {len(choice.rows)} tried"
    text += f" within an error of the best, {best.backbone} ({best.accuracy:.1%})"
    show(Notice(f"{text}; `transferkit choose` shows all"))
    taken = replace(config.backbone, name=row.backbone, crop=row.crop, image_size=row.image_size)  # type: ignore[arg-type]
    return replace(config, backbone=taken)
