"""What a run measures on its training pictures before it trains on them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.head import Classifier
from transferkit.backbones.norm_statistics import recalibrate
from transferkit.data.loader import CLEAN, ahead
from transferkit.training.events import Progress
from transferkit.training.sources import Material

MOST_IN_BATCH = 64


def recalibrate_batchnorm(
    classifier: Classifier, material: Material, device: torch.device, seed: int
) -> Iterator[Progress]:
    """Measure the backbone's batch-norm statistics anew on the training pictures, in place.

    Caches must be opened afterwards, for they depend on the statistics.
    """
    total = len(material.train)
    inputs = (
        classifier.normalize(images.to(device, memory_format=torch.channels_last))
        for images in shuffled_batches(material, seed)
    )
    for done in recalibrate(classifier.backbone, inputs):
        yield Progress("batch-norm statistics", done, total)


def shuffled_batches(material: Material, seed: int) -> Iterator[Tensor]:
    """Yield the clean views of all training pictures once: (N, 3, H, W) uint8, N almost equal.

    Shuffled, because the pictures are listed class by class, and the variance inside one class is
    smaller than that over all.
    """
    order = np.random.default_rng([seed, 4]).permutation(material.train)
    made = ahead(material.make, ((int(position), (CLEAN,)) for position in order))
    for part in np.array_split(order, -(-len(order) // MOST_IN_BATCH)):
        yield torch.from_numpy(np.concatenate([next(made) for _ in part]))
