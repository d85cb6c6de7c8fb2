"""What a closed-form stage sees of the pictures: features of several depths, or sums over them."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transferkit import processes
from transferkit.backbones.engine import choose_engine
from transferkit.closed_form.depths import Depth, num_columns, top_depths
from transferkit.closed_form.left_out import Problem
from transferkit.closed_form.sums import Sums, one_hot
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError
from transferkit.events import Event, Notice, Progress
from transferkit.training.depth_features import (
    DepthReader,
    at_size,
    make_reader,
    read_batches,
    reader_digest,
    tried_parts,
)
from transferkit.training.kept_features import kept_rows
from transferkit.training.material import Material
from transferkit.training.run import Run
from transferkit.training.supervised import balanced_class_weights

MOST_COLUMNS = 8192
"""Features whose products are summed up; 512 MiB."""


@dataclass(frozen=True)
class Seen:
    """What a solve sees.

    problem: of the training pictures at `positions` (N,), and, where there are more, sums over all.
    val_features: (M, D), val_labels: (M,). digest: of what has read them.
    """

    digest: str
    depths: tuple[Depth, ...]
    problem: Problem
    positions: np.ndarray
    labels: Tensor
    val_features: Tensor
    val_labels: Tensor

    def on_top(self, number: int) -> "Seen":
        """Return the same with the features of the highest depths alone."""
        depths = top_depths(self.depths, number)
        columns = slice(self.val_features.shape[1] - num_columns(depths), None)
        problem, val_features = self.problem.of_columns(columns), self.val_features[:, columns]
        return replace(self, depths=depths, problem=problem, val_features=val_features)


def see(run: Run, side_px: int | None = None) -> Generator[Event, None, Seen]:
    """Read one clean view of every training and validation picture, each process its share.

    Up to `MOST_JUDGED` training pictures keep their features; of more, so many do, and the sums
    over all: memory does not grow with the pictures. side_px: input size, None for the run's.
    """
    material, index = run.material, run.parts.index
    size = at_size(material.maker.preprocessing, side_px)
    material = replace(material, maker=replace(material.maker, preprocessing=size))
    train, val, kept = material.train, material.val, material.judged
    tried = tried_parts(index.labels, train)
    if index.folds is not None:  # the same pictures
        val = val[:0]
    parts = [*tried, np.setdiff1d(train, np.concatenate(tried)), val]
    reader = reader_of(run, size, len(train) + len(val))
    many, known = len(kept) < len(train), run.parts.known
    depths, notices = depths_to_solve(run, reader, many)
    yield from map(Notice, notices)
    num_classes = len(index.classes)
    summed = frozenset[int]() if known is None else known.summed
    columns = slice(-num_columns(depths), None)
    labels = torch.from_numpy(index.labels)
    weights = class_weights(run, labels[train])
    sums = None
    if summed or many:
        sums = Sums.empty(num_columns(depths), num_classes)
        if known and known.sums is not None and processes.is_first():
            sums += known.sums
    wanted = np.concatenate([kept, val])
    place = {int(position): row for row, position in enumerate(wanted)}
    features = torch.zeros(len(wanted), num_columns(depths))
    already = known_rows(run, reader)
    done, total = 0, sum(len(processes.share(part)) for part in parts)
    for part in parts:
        own = processes.share(part)
        for positions, rows in read(run, reader, material, already, own):
            rows = rows[:, columns]
            if sums is not None and part is not val:
                new = [int(position) not in summed for position in positions]
                picked = labels[positions[new]]
                given = None if weights is None else weights[picked]
                sums.add_(rows[new], one_hot(picked, num_classes), given)
            for position, row in zip(positions, rows, strict=True):
                if int(position) in place:
                    features[place[int(position)]] = row
            done += len(positions)
            yield Progress("features", done, total)
    processes.sum_(features)  # each process has filled in its rows
    problem = Problem(
        features[: len(kept)],
        one_hot(labels[kept], num_classes),
        None if weights is None else weights[labels[kept]],
        None if index.groups is None else torch.from_numpy(index.groups[kept]),
        sums=None if sums is None else sums.over_processes_(),
    )
    judged_by = slice(len(kept) if index.folds is None else 0, None)
    val = material.val
    return Seen(
        reader.digest, depths, problem, kept, labels[kept], features[judged_by], labels[val]
    )


def depths_to_solve(
    run: Run, reader: DepthReader, many: bool
) -> tuple[tuple[Depth, ...], list[str]]:
    """Return the depths that can be solved on, and notices. many: sums of products are needed.

    Raises UserError where an extended run has seen pictures otherwise.
    """
    known, depths = run.parts.known, reader.depths
    notices = [reader.engine.notice] if reader.engine.notice else []
    if len(depths) == 1 and run.settings.solve.depths != "last":
        notices.append("the backbone's blocks give no activations to read: solving on its output")
    if run.settings.solve.extends and known and known.digest != reader.digest:
        what = "the backbone is not the one that the extended run has solved on"
        raise UserError(what, "its weights or the release differ", "train on all pictures")
    if known and known.sums is not None:
        return affordable(depths, len(known.sums.features)), notices
    if many:
        depths = affordable(depths, MOST_COLUMNS)
        if len(depths) < len(reader.depths):
            text = f"solving on the top {len(depths)} depths: more would not fit into memory"
            notices.append(text)
    return depths, notices


def reader_of(run: Run, size: Preprocessing, count: int) -> DepthReader:
    """Return what reads so many pictures by the backbone as it is."""
    parts, options = run.parts, run.settings.solve
    known = parts.known
    if known and known.reader and known.digest == reader_digest(run.classifier, size, options):
        return known.reader
    with run.watch.on("trunk"):
        name = choose_engine(parts.settings.engine, parts.device, count)
        groups = parts.chain.groups
        return make_reader(run.classifier, groups, size, options, name, parts.device)


def known_rows(run: Run, reader: DepthReader) -> Mapping[int, Tensor]:
    """Return the features that are there already: read for a choice, in this run or before it."""
    known, settings = run.parts.known, run.parts.settings
    if known and known.digest == reader.digest:
        return known.rows
    if not settings.enabled or processes.count() > 1:
        return {}
    return kept_rows(settings.root, reader, run.parts.index)


def read(
    run: Run,
    reader: DepthReader,
    material: Material,
    known: Mapping[int, Tensor],
    positions: np.ndarray,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield positions (n,) in the index and the features (n, D) of their pictures."""
    there = np.array([int(position) in known for position in positions], dtype=bool)
    if there.any():
        yield positions[there], torch.stack([known[int(p)] for p in positions[there]])
    unread = positions[~there]
    start = 0
    for batch in read_batches(reader, material.make, unread, run.watch):
        yield unread[start : start + len(batch)], batch
        start += len(batch)


def affordable(depths: Sequence[Depth], most: int) -> tuple[Depth, ...]:
    """Return the highest depths that have so many features at most, at least the output."""
    number = len(depths)
    while number > 1 and num_columns(top_depths(depths, number)) > most:
        number -= 1
    return top_depths(depths, number)


def class_weights(run: Run, labels: Tensor) -> Tensor | None:
    """Return the weight (K,) of each class's pictures; None where all count the same."""
    if run.settings.balance == "none":
        return None
    return balanced_class_weights(labels.numpy(), len(run.parts.index.classes))
