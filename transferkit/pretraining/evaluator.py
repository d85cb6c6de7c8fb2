"""The evaluation after every epoch of pretraining: figures for metrics.csv, and plots."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.data.index import DatasetIndex
from transferkit.evaluation.pretraining_plots import picture_rows
from transferkit.events import Notice, Show
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
MOST_SAMPLED, FEWEST_SAMPLED, SAMPLED_PART = 256, 32, 8
"""Size of the sample whose features are examined: an eighth of the training pictures, within these
limits, so that it takes a few percent of an epoch."""


@dataclass
class Evaluator:
    """Evaluates a method after every epoch.

    probe_every: epochs between probes; None for a tenth of all.
    """

    method: Method
    encoder: Encoder
    index: DatasetIndex
    views: PretrainingViews
    folder: RunFolder
    device: torch.device
    show: Show
    probe_data: ProbeData | None = None
    probe_every: int | None = None
    seed: int = 0
    _pictures: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, done: int, planned: int) -> Mapping[str, float]:
        """Return the figures after `done` of `planned` epochs; draw what the method shows."""
        self.method.networks.eval()
        figures: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            features = features_of(self.encoder, iter(self.sample().split(128)), self.device)
            figures["spread"], figures["rank"] = feature_spread(features), effective_rank(features)
            if text := collapse_warning(figures["spread"], figures["rank"]):
                self.show(Notice(text, warning=True))
            if self.method.figures is not None:
                training, held_out = self.pictures("train"), self.pictures("val")
                figures |= self.method.figures(training.to(self.device), held_out.to(self.device))
            if self.due(done, planned):
                assert self.probe_data is not None
                figures |= probe(self.encoder, self.probe_data, self.device, self.seed)
            self.draw(done, planned)
        return figures

    def due(self, done: int, planned: int) -> bool:
        """Whether a probe is due: after the first, every `probe_every`-th and the last epoch."""
        if self.probe_data is None:
            return False
        every = self.probe_every or max(1, planned // 10)
        return done == 1 or done % every == 0 or done == planned

    def sample(self) -> Tensor:
        """Return the pictures whose features are examined; held-out ones if there are enough."""
        held_out = self.pictures("val")
        return held_out if len(held_out) >= FEWEST_SAMPLED else self.pictures("train")

    def pictures(self, split: str) -> Tensor:
        """Return a fixed sample of a split (N, 3, H, W), values 0..1; decoded once."""
        if split not in self._pictures:
            most = sample_size(len(self.index.of_split("train")))
            positions = evenly_spaced(self.index.of_split(split), most)
            size = self.views.preprocessing
            empty = torch.zeros(0, 3, size.height_px, size.width_px)
            images = clean_images(self.index, positions, self.views)
            self._pictures[split] = torch.cat([empty, *images])
        return self._pictures[split]

    def draw(self, done: int, planned: int) -> None:
        """Draw the method's plots of a few pictures; those of every tenth part are kept."""
        if self.method.show is None:
            return
        with torch.no_grad():
            plots = self.method.show(self.sample()[:SHOWN].to(self.device))
        kept = done == 1 or done % max(1, planned // 10) == 0
        for name, rows in plots.items():
            for plot in (name, f"{name}-{done:04d}") if kept else (name,):
                self.folder.save_plot(plot, picture_rows(rows.cpu().numpy(), f"epoch {done}"))


def sample_size(training: int) -> int:
    """Return the number of pictures to sample for so many training pictures."""
    return min(MOST_SAMPLED, max(FEWEST_SAMPLED, training // SAMPLED_PART))


def evenly_spaced(positions: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most `most` of the positions, evenly spaced over all of them."""
    count = min(most, len(positions))
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)]
