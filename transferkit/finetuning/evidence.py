"""Features of a data set's pictures: what the others say of each one's label, without it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.engine import choose_engine
from transferkit.backbones.head import Classifier
from transferkit.closed_form.depths import num_columns, top_depths
from transferkit.closed_form.judge import fit_temperature
from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import ViewMaker
from transferkit.events import Notice, Show
from transferkit.finetuning.model_input import make_input
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_handles import cache_settings
from transferkit.training.depth_features import USUAL_DEPTHS, make_reader, read_rows
from transferkit.training.fabric import make_fabric
from transferkit.training.kept_features import keep_rows, kept_rows
from transferkit.training.kept_solve import read_kept
from transferkit.training.material import Material, spread_over_classes

MOST_PICTURES = 20_000
"""Their features fit into memory; of more, each class gives its share."""


@dataclass(frozen=True)
class Evidence:
    """Features (N, D) float32 of pictures on the usual depths, and their labels (N,).

    index: all pictures; positions: (N,) in it, ascending, of those that have features. widths:
    columns of each depth. groups: (N,); those of one are left out together; None: each alone.
    """

    index: DatasetIndex
    positions: np.ndarray
    features: Tensor
    widths: tuple[int, ...]
    labels: Tensor
    groups: Tensor | None = None

    @property
    def problem(self) -> Problem:
        """The regression of the labels on the features."""
        targets = one_hot(self.labels, len(self.index.classes))
        return Problem(self.features, targets, groups=self.groups)


def evidence_for(config: Config, index: DatasetIndex, show: Show) -> Evidence:
    """Read the features of pictures of all splits in one pass, as a solve of `config` would.

    They are kept in the cache folder for whatever follows.
    """
    watch, fabric = Stopwatch(), make_fabric(config)
    config, backbone, chain, known = make_input(config, index, fabric.device, watch, show)
    positions = np.arange(len(index))
    if len(index) > MOST_PICTURES:
        positions = np.sort(spread_over_classes(index.labels, positions, MOST_PICTURES))
        show(Notice(f"of {len(index):,} pictures {MOST_PICTURES:,} are looked at"))
    if known and known.reader:
        reader = known.reader
    else:
        size = backbone.preprocessing
        classifier = Classifier(backbone.model, nn.Identity(), size.mean, size.std)
        classifier.to(fabric.device)
        engine = choose_engine(config.device.engine, fabric.device, len(positions))
        options = (config.solve, engine, fabric.device)
        reader = make_reader(classifier, chain.groups, size, *options)
    cache = cache_settings(config)
    rows = dict(kept_rows(cache.root, reader, index)) if cache.enabled else {}
    rows |= known.rows if known else {}
    maker = ViewMaker(backbone.preprocessing, reading=index.reading)
    make = Material(index, maker, 1, 1).make
    rows |= read_rows(reader, make, rows, positions, watch, show)
    if cache.enabled:
        keep_rows(cache.root, reader, index, rows)
    depths = top_depths(reader.depths, USUAL_DEPTHS)
    features = torch.stack([rows[int(p)][-num_columns(depths) :] for p in positions])
    return evidence_of(index, positions, features, tuple(depth.columns for depth in depths))


def run_evidence(path: Path) -> Evidence:
    """Return the features that the first solve of a run has kept, of training and validation.

    Raises UserError where it kept none.
    """
    kept = read_kept(path)
    widths = kept.widths[-USUAL_DEPTHS:]
    order = np.arange(len(kept.index))
    return evidence_of(kept.index, order, kept.features[:, -sum(widths) :], widths)


def evidence_of(
    index: DatasetIndex, positions: np.ndarray, features: Tensor, widths: tuple[int, ...]
) -> Evidence:
    """Put evidence together from features (N, D) of pictures at these positions."""
    labels = torch.from_numpy(index.labels[positions])
    groups = None if index.groups is None else torch.from_numpy(index.groups[positions])
    return Evidence(index, positions, features.float(), widths, labels, groups)


def out_of_sample(evidence: Evidence) -> Tensor:
    """Return probabilities (N, K) of every picture by a solve on all pictures of other groups."""
    solution = solve(evidence.problem, evidence.widths)
    scores = left_out_scores(solution.spectrum, evidence.problem, solution.penalty)
    return (scores / fit_temperature(scores, evidence.labels)).softmax(1)
