"""Micro-batches that fit: `--accumulate auto` becomes a number."""

import math
from dataclasses import replace

import torch

from transferkit.backbones.devices import to_device
from transferkit.events import Notice, Show
from transferkit.finetuning.speed import random_images
from transferkit.training.loop import SMALLEST_PART
from transferkit.training.memory import (
    SAMPLE,
    available_bytes,
    estimated_parts,
    fitting_parts,
    kept_bytes,
)
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage, apply_stage


def with_micro_batches(parts: Parts, show: Show) -> Parts:
    """Return the parts with a number in the place of `accumulate = "auto"`.

    It is found by a step of the deepest stage.
    """
    training = parts.config.training
    if training.accumulate != "auto":
        return parts
    assert isinstance(training.batch_size, int)
    stage = max(parts.plan.stages, key=lambda each: len(each.multipliers) - each.boundary)
    count = 1
    if stage.boundary < len(parts.plan.groups):
        count = micro_batches(parts, stage, training.batch_size)
    if count > 1:
        size = math.ceil(training.batch_size / count)
        text = f"a batch of {training.batch_size} does not fit into memory: {count} parts of {size}"
        show(Notice(f"{text}, their gradients added up"))
    config = replace(parts.config, training=replace(training, accumulate=count))
    return replace(parts, config=config)


def micro_batches(parts: Parts, stage: PlannedStage, batch_size: int) -> int:
    """Return in how many parts a batch of a live stage must be computed."""
    classifier, device = parts.classifier, parts.device
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    apply_stage(classifier, parts.column_of, stage)

    def pictures(count: int) -> torch.Tensor:
        return to_device(random_images(parts, count), device)

    def try_step(count: int) -> None:
        with parts.fabric.autocast():
            classifier(pictures(count)).sum().backward()

    try:
        with torch.random.fork_rng(devices=[]), parts.fabric.autocast():
            each = math.ceil(kept_bytes(classifier, pictures(SAMPLE)) / SAMPLE)
            start = estimated_parts(each, batch_size, SMALLEST_PART, available_bytes(device))
            if device.type == "cpu":  # where asking for too much may end the process
                return start
            return fitting_parts(try_step, batch_size, SMALLEST_PART, start)
    finally:
        for parameter in classifier.parameters():
            parameter.grad = None
        classifier.load_state_dict(before)
