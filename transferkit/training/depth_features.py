"""Features of several depths of pictures, read by a frozen backbone in one pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.block_groups import BlockGroup
from transferkit.backbones.engine import Engine
from transferkit.backbones.head import Classifier, FrozenTrunk
from transferkit.closed_form.depths import (
    Depth,
    DepthTrunk,
    find_depths,
    make_depth_engine,
    top_depths,
)
from transferkit.closed_form.sums import Sums
from transferkit.config import Solve
from transferkit.data.loader import CLEAN, ahead
from transferkit.data.preprocessing import Preprocessing
from transferkit.events import Progress, Show, silent
from transferkit.stopwatch import Stopwatch
from transferkit.training.boundary_cache import weights_digest
from transferkit.training.material import gathered, spread_over_classes

BATCH = 50
MOST_TRIED, FEW_TRIED, EACH_CLASS = 400, 100, 5
"""Training pictures that judge framing and input size; first a few, at least so many per class."""
USUAL_DEPTHS = 5
"""Solved on unless fewer or more are better."""


@dataclass(frozen=True)
class DepthReader:
    """Pictures (N, 3, H, W) uint8 -> features (N, D) of the depths, by `engine`.

    digest: of all that the features depend on but the pictures.
    """

    depths: tuple[Depth, ...]
    engine: Engine
    digest: str


@dataclass(frozen=True)
class KnownRows:
    """Features that were read before the run began: position in the index -> (D,).

    digest: of the reader that has read them; reader: itself, where it is still there. sums: over
    training pictures that are there no more and over those of `rows` that are at `summed`.
    """

    digest: str
    rows: Mapping[int, Tensor]
    reader: DepthReader | None = None
    sums: Sums | None = None
    summed: frozenset[int] = frozenset()


def at_size(size: Preprocessing, side_px: int | None) -> Preprocessing:
    """Return the preprocessing at another input size; None: as it is."""
    return size if side_px is None else replace(size, height_px=side_px, width_px=side_px)


def reader_digest(classifier: Classifier, size: Preprocessing, options: Solve) -> str:
    """Return a digest of a backbone's weights and of how it sees pictures."""
    tensors = classifier.backbone.state_dict() | {"mean": classifier.mean, "std": classifier.std}
    return f"{weights_digest(tensors)} {size} {options.depths} {options.mirrors}"


def make_reader(
    classifier: Classifier,
    groups: Sequence[BlockGroup],
    size: Preprocessing,
    options: Solve,
    engine: str,
    device: torch.device,
) -> DepthReader:
    """Prepare the backbone of a classifier to read clean views of pictures.

    engine: "onnx" or "torch".
    """
    classifier.eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.zeros(2, 3, size.height_px, size.width_px, dtype=torch.uint8)
    example.random_(0, 256, generator=generator)
    depths = find_depths(classifier.backbone, groups, classifier.normalize(example.to(device)))
    if options.depths == "last":
        depths = top_depths(depths, 1)
    network = FrozenTrunk(classifier, DepthTrunk(classifier.backbone, depths, options.mirrors))
    made = make_depth_engine(network.eval(), depths, example, engine, device)
    return DepthReader(depths, made, reader_digest(classifier, size, options))


def read_batches(
    reader: DepthReader,
    make: Callable[[tuple[int, tuple[int, ...]]], np.ndarray],
    positions: np.ndarray,
    watch: Stopwatch,
) -> Iterator[Tensor]:
    """Yield features (n, D) of the clean views of pictures at these positions, in their order.

    make: see `Material.make`.
    """
    views = ahead(make, ((int(position), (CLEAN,)) for position in positions))
    for start in range(0, len(positions), BATCH):
        batch = gathered(watch, views, min(BATCH, len(positions) - start))
        with watch.on("trunk"):
            yield reader.engine.run(batch)


def read_rows(
    reader: DepthReader,
    make: Callable[[tuple[int, tuple[int, ...]]], np.ndarray],
    known: Mapping[int, Tensor],
    positions: np.ndarray,
    watch: Stopwatch,
    show: Show = silent,
) -> dict[int, Tensor]:
    """Return the features (D,) of the pictures at these positions that are not known, by position.

    make: see `Material.make`.
    """
    unread = np.array([p for p in positions if int(p) not in known], dtype=np.int64)
    rows: dict[int, Tensor] = {}
    for batch in read_batches(reader, make, unread, watch):
        rows |= zip(unread[len(rows) : len(rows) + len(batch)].tolist(), batch, strict=True)
        show(Progress("features", len(rows), len(unread)))
    return rows


def tried_parts(labels: np.ndarray, train: np.ndarray) -> list[np.ndarray]:
    """Return positions of training pictures to judge by, in parts: a few, as many, all others.

    Each class in its share. A solve reads these parts before all other pictures, in batches of
    their own, so that it gives the same bits whether they are known already or not.
    """
    few = max(FEW_TRIED, -(-EACH_CLASS * (int(labels.max()) + 1) // BATCH) * BATCH)
    tried = spread_over_classes(labels, train, MOST_TRIED)
    more = spread_over_classes(labels, tried, 2 * few)
    first = spread_over_classes(labels, more, few)
    return [first, np.setdiff1d(more, first), np.setdiff1d(tried, more)]
