"""`--crop auto`: the framing that leave-one-out prefers, on a part of the training pictures."""

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.backbones.chain import find_chain
from transferkit.backbones.create import Backbone
from transferkit.backbones.head import Classifier, FrozenTrunk
from transferkit.closed_form.depths import Depth, DepthTrunk, find_depths, top_depths
from transferkit.closed_form.judge import judge, misses
from transferkit.closed_form.left_out import Problem, left_out_scores, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config
from transferkit.data.framing import framed
from transferkit.data.index import DatasetIndex
from transferkit.data.loader import CLEAN, ViewMaker, ahead
from transferkit.training.material import Material, spread_over_classes

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
    own = backbone.preprocessing
    depths, network = depth_network(backbone)
    losses = []
    for crop in CANDIDATES:
        maker = ViewMaker(framed(own, crop, config.backbone.crop_share), reading=index.reading)
        features = clean_features(network, Material(index, maker, 1, 1), positions)
        problem = Problem(features, one_hot(labels, len(index.classes)))
        solution = solve(problem, [depth.columns for depth in depths])
        scores = left_out_scores(solution.spectrum, problem, solution.penalty)
        losses.append(misses(scores, labels))
    verdict = judge(losses, CLEARLY)
    figures = zip(CANDIDATES, verdict.losses, strict=True)
    shown = ", ".join(f"{crop} {1 - loss:.1%}" for crop, loss in figures)
    chosen = CANDIDATES[verdict.chosen]
    by = f"leave-one-out accuracy of {len(positions)} training pictures"
    return chosen, f"--crop auto takes {chosen}, by {by}: {shown}"


def depth_network(backbone: Backbone) -> tuple[tuple[Depth, ...], nn.Module]:
    """Return the top depths of a backbone, and pictures (N, 3, H, W) -> their features (N, D)."""
    model, size = backbone.model.eval(), backbone.preprocessing
    example = torch.zeros(2, 3, size.height_px, size.width_px)
    depths = top_depths(find_depths(model, find_chain(model, example).groups, example), DEPTHS)
    classifier = Classifier(model, nn.Identity(), size.mean, size.std)
    return depths, FrozenTrunk(classifier, DepthTrunk(model, depths)).eval()


@torch.inference_mode()
def clean_features(network: nn.Module, material: Material, positions: np.ndarray) -> Tensor:
    """Return features (N, D) of the clean views of pictures at these positions of the index."""
    views = ahead(material.make, ((int(position), (CLEAN,)) for position in positions))
    rows = [
        network(torch.from_numpy(np.concatenate([next(views) for _ in part])))
        for part in np.array_split(positions, -(-len(positions) // BATCH))
    ]
    return torch.cat(rows).clone()
