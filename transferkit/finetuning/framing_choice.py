"""`--crop auto`: the framing that leave-one-out prefers, on a part of the training pictures."""

from functools import partial

import numpy as np
import torch

from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import Backbone
from transferkit.backbones.head import Classifier, FrozenTrunk
from transferkit.closed_form.depths import DepthTrunk, find_depths, top_depths
from transferkit.closed_form.judge import judge, misses
from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config
from transferkit.data.framing import framed
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import CLEAN, ViewMaker, ahead
from transferkit.training.material import spread_over_classes

MOST = 400
"""Pictures that judge."""
CANDIDATES = ("backbone", "squash", "pad")
CLEARLY = 1.0
"""Standard errors by which another framing has to be better than one before it."""
BATCH, DEPTHS = 50, 5


def judged_framing(config: Config, index: DatasetIndex, backbone: Backbone) -> tuple[str, str]:
    """Return the framing to take, one of `CANDIDATES`, and what to say of the choice.

    Each is judged by a solve on the features of several depths, every picture left out in turn.
    """
    positions = spread_over_classes(index.labels, index.of_split("train"), MOST)
    labels = torch.from_numpy(index.labels[positions])
    losses = []
    for crop in CANDIDATES:
        features, widths = clean_features(config, index, backbone, crop, positions)
        problem = Problem(features, one_hot(labels, len(index.classes)))
        solution = solve(problem, widths)
        scores = left_out_scores(solution.spectrum, problem, solution.penalty)
        losses.append(misses(scores, labels))
    verdict = judge(losses, CLEARLY)
    figures = zip(CANDIDATES, verdict.losses, strict=True)
    shown = ", ".join(f"{crop} {1 - loss:.1%}" for crop, loss in figures)
    chosen = CANDIDATES[verdict.chosen]
    by = f"leave-one-out accuracy of {len(positions)} training pictures"
    return chosen, f"--crop auto takes {chosen}, by {by}: {shown}"


@torch.inference_mode()
def clean_features(
    config: Config, index: DatasetIndex, backbone: Backbone, crop: str, positions: np.ndarray
) -> tuple[torch.Tensor, list[int]]:
    """Return features (N, D) of several depths of pictures under a framing, and depths' widths."""
    size = framed(backbone.preprocessing, crop, config.backbone.crop_share)
    model = backbone.model.eval()
    example = torch.zeros(2, 3, size.height_px, size.width_px)
    depths = top_depths(find_depths(model, find_chain(model, example).groups, example), DEPTHS)
    classifier = Classifier(model, torch.nn.Identity(), size.mean, size.std)
    network = FrozenTrunk(classifier, DepthTrunk(model, depths)).eval()
    maker = ViewMaker(size, "none", reading=index.reading)
    places = [int(position) for position in positions]
    made = ahead(partial(clean_view_of, maker, index), places)
    rows = [
        network(torch.from_numpy(np.concatenate([next(made) for _ in part])))
        for part in np.array_split(positions, -(-len(positions) // BATCH))
    ]
    return torch.cat(rows).clone(), [depth.columns for depth in depths]


def clean_view_of(maker: ViewMaker, index: DatasetIndex, position: int) -> np.ndarray:
    """Make the clean view (1, 3, H, W) of the picture at a position of the index."""
    return maker.views(index.file(position), position, (CLEAN,))
