"""What is looked at after every epoch of pretraining: figures for the row, pictures for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.data.index import DatasetIndex
from transferkit.evaluation.pretraining_plots import picture_rows
from transferkit.events import Event, Notice
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.features import (
    ProbeData,
    clean_images,
    collapse_warning,
    effective_rank,
    feature_spread,
    features_of,
    probe,
)
from transferkit.pretraining.method import Method
from transferkit.pretraining.views import PretrainingViews
from transferkit.runs.folder import RunFolder

SHOWN = 8
MOST_WATCHED, FEWEST_WATCHED, WATCHED_PART = 256, 32, 8
"""Pictures, kept aside if there are any, whose features are looked at: an eighth as many as are
learned from, within these limits, so that looking takes a few percent of an epoch."""


@dataclass
class Watch:
    """Looks at a method after every epoch. probe_every: epochs between probes, None for none."""

    method: Method
    encoder: Encoder
    index: DatasetIndex
    views: PretrainingViews
    folder: RunFolder
    device: torch.device
    show: Callable[[Event], None]
    probe_data: ProbeData | None = None
    probe_every: int | None = None
    seed: int = 0

    def __call__(self, done: int, planned: int) -> Mapping[str, float]:
        """Return the figures after `done` of `planned` epochs; draw what the method shows."""
        self.method.networks.eval()
        found: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            features = features_of(self.encoder, iter(self.watched().split(128)), self.device)
            found["spread"], found["rank"] = feature_spread(features), effective_rank(features)
            if text := collapse_warning(found["spread"], found["rank"]):
                self.show(Notice(text, warning=True))
            if self.method.measure is not None:
                seen, aside = self.pictures("train"), self.pictures("val")
                found |= self.method.measure(seen.to(self.device), aside.to(self.device))
            if self.due(done, planned):
                assert self.probe_data is not None
                found |= probe(self.encoder, self.probe_data, self.device, self.seed)
            self.draw(done, planned)
        return found

    def due(self, done: int, planned: int) -> bool:
        """Whether it is time for a probe: after the first and last epoch, and in between."""
        if self.probe_data is None:
            return False
        every = self.probe_every or max(1, planned // 10)
        return done == 1 or done % every == 0 or done == planned

    def watched(self) -> Tensor:
        """Return the pictures whose features are looked at, (N, 3, H, W), values 0..1."""
        aside = self.pictures("val")
        return aside if len(aside) >= FEWEST_WATCHED else self.pictures("train")

    def pictures(self, split: str) -> Tensor:
        """Return the first pictures of a split, of a fixed random order; decoded once."""
        if split not in self._pictures:
            most = most_watched(len(self.index.of_split("train")))
            positions = chosen(self.index.of_split(split), most)
            parts = list(clean_images(self.index, positions, self.views))
            size = self.views.preprocessing
            empty = torch.zeros(0, 3, size.height_px, size.width_px)
            self._pictures[split] = torch.cat([empty, *parts])
        return self._pictures[split]

    def draw(self, done: int, planned: int) -> None:
        """Draw what the method makes of a few pictures; a tenth of the epochs is kept for good."""
        if self.method.show is None:
            return
        with torch.no_grad():
            drawn = self.method.show(self.watched()[:SHOWN].to(self.device))
        for name, rows in drawn.items():
            self.folder.save_plot(name, picture_rows(rows.cpu().numpy(), f"epoch {done}"))
            if done == 1 or done % max(1, planned // 10) == 0:
                kept = f"{name}-{done:04d}"
                self.folder.save_plot(kept, picture_rows(rows.cpu().numpy(), f"epoch {done}"))

    def __post_init__(self) -> None:
        self._pictures: dict[str, Tensor] = {}


def most_watched(learned: int) -> int:
    """Return how many pictures are looked at where so many are learned from."""
    return min(MOST_WATCHED, max(FEWEST_WATCHED, learned // WATCHED_PART))


def chosen(positions: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of the positions, spread over all of them."""
    count = min(most, len(positions))
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]
