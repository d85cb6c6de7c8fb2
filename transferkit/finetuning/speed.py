"""Short measurements of what a run will do: seconds per picture of each part of the work."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from transferkit.backbones.devices import to_device
from transferkit.backbones.engine import choose_engine, make_engine
from transferkit.backbones.head import FrozenTrunk
from transferkit.data.loader import CLEAN, ahead
from transferkit.training.cache_filling import row_shape
from transferkit.training.parts import Parts
from transferkit.training.sources import trainable_top
from transferkit.training.stages import PlannedStage

SAMPLE = 16  # pictures measured


def timed(work: Callable[[], object], units: int) -> float:
    """Return seconds per unit of the faster of two calls, after one to warm up."""
    work()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / units


def seconds_per_picture(parts: Parts) -> float:
    """Measure decoding and making one varied view, with all threads at work."""
    material = parts.material
    sample = [int(p) for p in material.train[:SAMPLE]]
    number = CLEAN if material.maker.level == "none" else 1
    items = [(position, (number,)) for position in sample]
    return timed(lambda: list(ahead(material.make, items)), len(items))


def trunk_seconds(parts: Parts, boundary: int, sample: int = SAMPLE) -> float:
    """Measure the frozen trunk per picture, on the engine that would run it."""
    images = random_images(parts, sample)
    trunk = FrozenTrunk(parts.classifier, parts.chain.trunk(boundary)).eval()
    wanted = choose_engine(parts.settings.engine, parts.device, parts.material.num_rows)
    engine = make_engine(trunk, images, wanted, parts.device)
    return timed(lambda: engine.run(images), len(images))


def forward_seconds(parts: Parts, sample: int = SAMPLE) -> float:
    """Measure the whole model per picture, in evaluation mode."""
    images = to_device(random_images(parts, sample), parts.device)
    parts.classifier.eval()
    with torch.inference_mode():
        return timed(lambda: parts.classifier(images), len(images))


def train_seconds(parts: Parts, stage: PlannedStage, cached: bool, sample: int = SAMPLE) -> float:
    """Measure a training step per picture: forward and backward of what the stage trains."""
    if cached:
        network: nn.Module = trainable_top(parts, stage)
        batch = torch.randn(sample, *row_shape(parts, stage.boundary))
    else:
        network, batch = parts.classifier, random_images(parts, sample)
    batch = to_device(batch, parts.device)
    labels = torch.from_numpy(np.arange(sample) % len(parts.index.classes)).to(parts.device)

    def step() -> None:
        nn.functional.cross_entropy(network(batch), labels).backward()
        parts.classifier.zero_grad(set_to_none=True)

    return timed(step, sample)


def random_images(parts: Parts, count: int) -> torch.Tensor:
    """Return pictures of noise as bytes: (count, 3, H, W)."""
    size = parts.backbone.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.height_px, size.width_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
