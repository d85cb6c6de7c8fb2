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
from transferkit.finetuning.session import Session
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


def seconds_per_picture(session: Session) -> float:
    """Measure decoding and making one varied view, with all threads at work."""
    material = session.sources.material
    sample = [int(p) for p in material.train[:SAMPLE]]
    number = CLEAN if material.maker.level == "none" else 1
    items = [(position, (number,)) for position in sample]
    return timed(lambda: list(ahead(material.make, items)), len(items))


def trunk_seconds(session: Session, boundary: int, sample: int = SAMPLE) -> float:
    """Measure the frozen trunk per picture, on the engine that would run it."""
    sources = session.sources
    images = random_images(session, sample)
    trunk = FrozenTrunk(session.classifier, session.chain.trunk(boundary)).eval()
    wanted = choose_engine(sources.settings.engine, sources.device, sources.material.num_rows)
    engine = make_engine(trunk, images, wanted, sources.device)
    return timed(lambda: engine.run(images), len(images))


def forward_seconds(session: Session, sample: int = SAMPLE) -> float:
    """Measure the whole model per picture, in evaluation mode."""
    images = to_device(random_images(session, sample), session.sources.device)
    session.classifier.eval()
    with torch.inference_mode():
        return timed(lambda: session.classifier(images), len(images))


def train_seconds(
    session: Session, stage: PlannedStage, cached: bool, sample: int = SAMPLE
) -> float:
    """Measure a training step per picture: forward and backward of what the stage trains."""
    sources = session.sources
    if cached:
        network: nn.Module = sources.trainable_top(stage)
        batch = torch.randn(sample, *sources.row_shape(stage.boundary))
    else:
        network, batch = session.classifier, random_images(session, sample)
    batch = to_device(batch, sources.device)
    labels = torch.from_numpy(np.arange(sample) % len(session.index.classes)).to(sources.device)

    def step() -> None:
        nn.functional.cross_entropy(network(batch), labels).backward()
        session.classifier.zero_grad(set_to_none=True)

    return timed(step, sample)


def random_images(session: Session, count: int) -> torch.Tensor:
    """Return pictures of noise as bytes: (count, 3, H, W)."""
    size = session.backbone.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.height_px, size.width_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
