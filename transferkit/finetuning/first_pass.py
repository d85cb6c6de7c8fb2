"""What a run measures on its training pictures before it trains on them."""

import math
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.devices import to_device
from transferkit.backbones.head import Classifier
from transferkit.backbones.norm_statistics import recalibrate
from transferkit.data.loader import CLEAN, ahead
from transferkit.events import Progress
from transferkit.training.material import Material

MOST_IN_BATCH = 64
SMALLEST_DEVIATION = 1 / 255
"""One step of a byte: a channel that is the same in all pictures must not be divided by 0."""

Channels = tuple[float, ...]
"""A value for each of red, green and blue."""


def recalibrate_batchnorm(
    classifier: Classifier, material: Material, device: torch.device, seed: int
) -> Iterator[Progress]:
    """Measure the backbone's batch-norm statistics anew on the training pictures, in place.

    Caches must be opened afterwards, for they depend on the statistics.
    """
    total = len(material.train)
    inputs = (
        classifier.normalize(to_device(images, device))
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


def channel_statistics(material: Material) -> Generator[Progress, None, tuple[Channels, Channels]]:
    """Measure mean and standard deviation per channel of all pixels of the training pictures.

    The pictures as the network sees them, resized and cropped, without augmentation; values 0..1.
    Sums of whole numbers are exact, so that the order of the pictures does not matter.
    """
    total = len(material.train)
    sums, squares, pixels = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    made = ahead(material.make, ((int(position), (CLEAN,)) for position in material.train))
    for done, views in enumerate(made, start=1):  # (1, 3, H, W) uint8
        sums += views.sum(axis=(0, 2, 3), dtype=np.int64)
        squares += np.square(views, dtype=np.int64).sum(axis=(0, 2, 3))
        pixels += views.size // 3
        yield Progress("normalisation", done, total)
    mean = sums / pixels
    variances = [pixels * int(q) - int(s) ** 2 for s, q in zip(sums, squares, strict=True)]
    deviation = np.array([math.sqrt(variance) for variance in variances]) / pixels
    return (
        tuple(float(value) for value in mean / 255),
        tuple(max(float(value), SMALLEST_DEVIATION) for value in deviation / 255),
    )
