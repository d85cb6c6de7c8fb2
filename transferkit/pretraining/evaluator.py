"""The evaluation after every epoch of pretraining: figures for metrics.csv, and plots."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.evaluation.pretraining_plots import picture_rows
from transferkit.events import Notice, Show
from transferkit.pretraining.features import (
    clean_images,
    collapse_warning,
    effective_rank,
    feature_spread,
    features_of,
    probe,
)
from transferkit.pretraining.run import PretrainingSession
from transferkit.runs.folder import RunFolder

SHOWN = 8
MOST_SAMPLED, FEWEST_SAMPLED, SAMPLED_PART = 256, 32, 8
"""Size of the sample whose features are examined: an eighth of the training pictures, within these
limits, so that it takes a few percent of an epoch."""


@dataclass
class Evaluator:
    """Evaluates a method after every epoch."""

    session: PretrainingSession
    folder: RunFolder
    show: Show
    _pictures: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, done: int, planned: int) -> Mapping[str, float]:
        """Return the figures after `done` of `planned` epochs; draw what the method shows."""
        session, method, device = self.session, self.session.method, self.session.device
        method.networks.eval()
        figures: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            features = features_of(session.encoder, iter(self.sample().split(128)), device)
            figures["spread"], figures["rank"] = feature_spread(features), effective_rank(features)
            if text := collapse_warning(figures["spread"], figures["rank"]):
                self.show(Notice(text, warning=True))
            if method.figures is not None:
                training, held_out = self.pictures("train"), self.pictures("val")
                figures |= method.figures(training.to(device), held_out.to(device))
            every = session.config.pretraining.probe_every or max(1, planned // 10)
            if session.probe is not None and (done in (1, planned) or done % every == 0):
                seed = session.config.training.seed
                figures |= probe(session.encoder, session.probe, session.views, device, seed)
            self.draw(done, planned)
        return figures

    def sample(self) -> Tensor:
        """Return the pictures whose features are examined; held-out ones if there are enough."""
        held_out = self.pictures("val")
        return held_out if len(held_out) >= FEWEST_SAMPLED else self.pictures("train")

    def pictures(self, split: str) -> Tensor:
        """Return a fixed sample of a split (N, 3, H, W), values 0..1; decoded once."""
        if split not in self._pictures:
            index, views = self.session.index, self.session.views
            most = sample_size(len(index.of_split("train")))
            images = clean_images(index, evenly_spaced(index.of_split(split), most), views)
            empty = torch.zeros(0, 3, views.preprocessing.height_px, views.preprocessing.width_px)
            self._pictures[split] = torch.cat([empty, *images])
        return self._pictures[split]

    def draw(self, done: int, planned: int) -> None:
        """Draw the method's plots of a few pictures; those of every tenth part are kept."""
        show = self.session.method.show
        if show is None:
            return
        with torch.no_grad():
            plots = show(self.sample()[:SHOWN].to(self.session.device))
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
