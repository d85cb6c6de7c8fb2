"""What a run trains on: the pictures of a data set and their views."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferkit.data.index import DatasetIndex
from transferkit.data.kept import KeptPictures
from transferkit.data.loader import ViewMaker
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_rows import CacheRows

Pick = tuple[np.ndarray, np.ndarray]
"""Positions into the training set (n,) and the view number (n,) of each."""
Views = tuple[int, tuple[int, ...]]
"""The position of a picture in the index, and view numbers."""
MOST_JUDGED = 4096
"""Training pictures whose features a solve keeps, to judge by; of more it keeps sums."""
MOST_REFERENCES = 2000
"""Training pictures whose features a run keeps."""


@dataclass(frozen=True)
class Material:
    """What a run trains on.

    num_views: views per training picture in a cache, the clean one included. live_views: the same
    in a live stage; None makes a new view in every epoch.
    """

    index: DatasetIndex
    maker: ViewMaker
    num_views: int
    live_views: int | None

    @property
    def train(self) -> np.ndarray:
        """Positions of the training pictures in the index."""
        return self.index.of_split("train")

    @property
    def val(self) -> np.ndarray:
        """Positions of the validation pictures in the index; with folds all that train."""
        return self.index.of_split("val" if self.index.folds is None else "train")

    @property
    def judged(self) -> np.ndarray:
        """Positions of at most `MOST_JUDGED` training pictures, ascending; groups are whole."""
        train, groups = self.train, self.index.groups
        if self.index.folds is not None:
            return train
        if groups is None or len(train) <= MOST_JUDGED:
            return np.sort(spread_over_classes(self.index.labels, train, MOST_JUDGED))
        _, group, sizes = np.unique(groups[train], return_inverse=True, return_counts=True)
        order = np.random.default_rng(0).permutation(len(sizes))
        taken = order[np.cumsum(sizes[order]) <= MOST_JUDGED]
        return train[np.isin(group, taken if len(taken) > 1 else order[:2])]

    @property
    def reference(self) -> np.ndarray:
        """Positions of at most `MOST_REFERENCES` of these, each class in its share.

        With folds not those of the first one, which the others are compared with.
        """
        folds, judged = self.index.folds, self.judged
        judged = judged if folds is None else judged[folds[judged] != 0]
        return spread_over_classes(self.index.labels, judged, MOST_REFERENCES)

    @property
    def num_rows(self) -> int:
        """Rows of a cache: every view of every training picture, one of every validation one."""
        return self.rows(1).num_rows

    def rows(self, parts: int) -> CacheRows:
        """Return the order of the rows of a cache in so many parts."""
        return CacheRows(len(self.train), self.num_views, len(self.val), parts)

    def view_lists(self, parts: int = 1, part: int = 0) -> list[Views]:
        """List what the rows of a part of a cache hold, in their order."""
        positions = np.concatenate([self.train, self.val])
        return [(int(positions[p]), views) for p, views in self.rows(parts).views(part)]

    def make(self, item: tuple[int, Iterable[int]], kept: KeptPictures | None = None) -> np.ndarray:
        """Make the views of one entry of such a list: (V, 3, H, W) uint8; `kept`: see `views`."""
        position, numbers = item
        return self.maker.views(self.index.file(position), position, numbers, kept)


def spread_over_classes(labels: np.ndarray, positions: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of the positions, each class in its share."""
    ordered = positions[np.argsort(labels[positions], kind="stable")]
    count = min(most, len(ordered))
    return ordered[np.linspace(0, len(ordered) - 1, count).round().astype(int)]


def grouped(lists: Sequence[Views], most_rows: int, cut: int) -> list[list[Views]]:
    """Cut a list into batches of at most so many views, and at the row `cut` anyway.

    A picture's views stay together, also where they are more.
    """
    batches: list[list[Views]] = []
    rows, size = 0, most_rows
    for item in lists:
        if size + len(item[1]) > most_rows or rows == cut:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += len(item[1])
        rows += len(item[1])
    return batches


def gathered(watch: Stopwatch, views: Iterator[np.ndarray], count: int) -> Tensor:
    """Wait for the views (V, 3, H, W) of so many pictures; return them as one batch."""
    with watch.on("pictures"):
        return torch.from_numpy(np.concatenate([next(views) for _ in range(count)]))
