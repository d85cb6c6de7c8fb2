"""Batches that fit: `--batch-size auto` and `--accumulate auto` become numbers."""

import math
from dataclasses import replace

import torch

from transferkit.backbones.devices import to_device
from transferkit.events import Notice, Show
from transferkit.finetuning.session import Session
from transferkit.finetuning.speed import random_images
from transferkit.training.loop import SMALLEST_PART
from transferkit.training.memory import (
    SAMPLE,
    available_bytes,
    estimated_parts,
    fitting_parts,
    kept_bytes,
)
from transferkit.training.stages import PlannedStage, apply_stage


def resolve_parts(session: Session, show: Show) -> None:
    """Put numbers in the place of `accumulate = "auto"`, by a step of the deepest stage."""
    training = session.config.training
    if training.accumulate != "auto":
        return
    assert isinstance(training.batch_size, int)
    stage = max(session.plan.stages, key=lambda each: len(each.multipliers) - each.boundary)
    parts = 1
    if stage.boundary < len(session.plan.groups):
        parts = parts_of(session, stage, training.batch_size)
    session.config = replace(session.config, training=replace(training, accumulate=parts))
    if parts > 1:
        size = math.ceil(training.batch_size / parts)
        text = f"a batch of {training.batch_size} does not fit into memory: {parts} parts of {size}"
        show(Notice(f"{text}, their gradients added up"))


def parts_of(session: Session, stage: PlannedStage, batch_size: int) -> int:
    """Return in how many parts a batch of a live stage must be computed."""
    classifier, device = session.classifier, session.fabric.device
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    apply_stage(classifier, session.column_of, stage)

    def pictures(count: int) -> torch.Tensor:
        return to_device(random_images(session, count), device)

    def try_step(count: int) -> None:
        with session.fabric.autocast():
            classifier(pictures(count)).sum().backward()

    try:
        with torch.random.fork_rng(devices=[]), session.fabric.autocast():
            each = math.ceil(kept_bytes(classifier, pictures(SAMPLE)) / SAMPLE)
            start = estimated_parts(each, batch_size, SMALLEST_PART, available_bytes(device))
            if device.type == "cpu":  # where asking for too much may end the process
                return start
            return fitting_parts(try_step, batch_size, SMALLEST_PART, start)
    finally:
        for parameter in classifier.parameters():
            parameter.grad = None
        classifier.load_state_dict(before)
