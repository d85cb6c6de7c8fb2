"""The verb `plan`: what `finetune` would do, and how long it would take, without doing it."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from transferkit.config import Config
from transferkit.data.loader import CLEAN
from transferkit.inference.engine import choose_engine, make_engine
from transferkit.session import Session, prepare
from transferkit.training.events import Event
from transferkit.training.sources import FrozenTrunk
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.training.summary import PlanRow

SAMPLE = 16  # pictures measured


def plan(config: Config, show: Callable[[Event], None]) -> tuple[list[PlanRow], list[str]]:
    """Return the plan's rows, with expected times from a short measurement, and its notices."""
    session = prepare(config, show)
    notices = []
    if config.training.lr == "auto":
        notices = ["finetune finds the first rate by a range test; shown is the usual one"]
    notices += [notice.text for notice in session.sources.choose_base(session.plan)]
    picture_s = seconds_per_picture(session)
    rows, cached_before = [], False
    for stage in session.plan.stages:
        row = plan_row(session, stage, picture_s, first_cached=not cached_before)
        cached_before = cached_before or row.cache_bytes > 0
        rows.append(row)
    return rows, notices


def plan_row(
    session: Session, stage: PlannedStage, picture_s: float, first_cached: bool
) -> PlanRow:
    """Measure one stage: a few training steps on random input of its boundary's shape."""
    sources = session.sources
    cached = sources.is_cached(stage)
    apply_stage(session.classifier, session.column_of, stage)
    named = list(session.classifier.named_parameters())
    material = sources.material
    epoch_s = len(material.train) * train_seconds(session, stage, cached)
    if not cached:
        epoch_s = max(epoch_s, len(material.train) * picture_s)
        epoch_s += len(material.val) * (picture_s + forward_seconds(session))
    seconds = stage.epochs * epoch_s
    if cached and first_cached and sources.base is not None:
        seconds += material.num_rows * max(picture_s, trunk_seconds(session, sources.base))
    if stage is session.plan.stages[0] and session.config.training.batchnorm == "recalibrate":
        seconds += len(material.train) * max(picture_s, forward_seconds(session))
    rates = [stage.lr * multiplier for multiplier in stage.multipliers]
    return PlanRow(
        name=stage.name,
        epochs=stage.epochs,
        lr_by_group=dict(zip((*session.plan.groups, "head"), rates, strict=True)),
        trainable_parameters=sum(p.numel() for _, p in named if p.requires_grad),
        total_parameters=sum(p.numel() for _, p in named),
        cache_bytes=sources.cache_bytes(stage.boundary) if cached else 0,
        seconds=seconds,
        if_improving=stage.if_improving,
    )


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
    from transferkit.data.loader import ahead

    material = session.sources.material
    sample = [int(p) for p in material.train[:SAMPLE]]
    number = CLEAN if material.maker.level == "none" else 1
    items = [(position, (number,)) for position in sample]
    return timed(lambda: list(ahead(material.make, items)), len(items))


def trunk_seconds(session: Session, boundary: int) -> float:
    """Measure the frozen trunk per picture, on the engine that would run it."""
    sources = session.sources
    images = random_images(session, SAMPLE)
    trunk = FrozenTrunk(session.classifier, session.chain.trunk(boundary)).eval()
    wanted = choose_engine(sources.settings.engine, sources.device, sources.material.num_rows)
    engine = make_engine(trunk, images, wanted, sources.device)
    return timed(lambda: engine.run(images), len(images))


def forward_seconds(session: Session) -> float:
    """Measure the whole model per picture, in evaluation mode."""
    images = random_images(session, SAMPLE).to(session.sources.device)
    images = images.contiguous(memory_format=torch.channels_last)
    session.classifier.eval()
    with torch.inference_mode():
        return timed(lambda: session.classifier(images), len(images))


def train_seconds(session: Session, stage: PlannedStage, cached: bool) -> float:
    """Measure a training step per picture: forward and backward of what the stage trains."""
    sources = session.sources
    if cached:
        network: nn.Module = sources.trainable_top(stage)
        batch = torch.randn(SAMPLE, *sources.row_shape(stage.boundary))
    else:
        network, batch = session.classifier, random_images(session, SAMPLE)
    batch = batch.to(sources.device)
    if batch.ndim == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.arange(SAMPLE) % len(session.index.classes)).to(sources.device)

    def step() -> None:
        nn.functional.cross_entropy(network(batch), labels).backward()
        session.classifier.zero_grad(set_to_none=True)

    return timed(step, SAMPLE)


def random_images(session: Session, count: int) -> torch.Tensor:
    """Return pictures of noise as bytes: (count, 3, H, W)."""
    size = session.backbone.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.height_px, size.width_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
