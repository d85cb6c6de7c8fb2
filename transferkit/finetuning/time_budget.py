"""`--budget`: measure for a few seconds, and choose stages, epochs and views that fit the time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transferkit.events import Notice
from transferkit.finetuning.speed import (
    forward_seconds,
    seconds_per_picture,
    train_seconds,
    trunk_seconds,
)
from transferkit.training.budget import Budget, StageCost, allocate, deepest_that_fits
from transferkit.training.cache_choice import is_cacheable, is_cached, needs
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.units import duration_text

SAMPLE = 8  # pictures measured at a time
CLOSING_S = 5.0
"""Plots and report; the pictures of the final validation come on top."""
MOST_VIEWS = 9
"""Of each training picture in the caches, the clean one included."""
EXTRACTION_SHARE = 0.25
"""Of the time left, for computing the views: more of them help less than more epochs."""
FORWARD_SHARE = 1 / 3
"""Of a training step: the backward pass has two products for each one of the forward pass."""
FEWEST = 1 / 3
"""Share of the usual epochs that makes a stage worth beginning; two epochs at least."""


@dataclass(frozen=True)
class Speeds:
    """Measured seconds for one picture.

    picture: to decode it and make a view. forward: the whole network, to evaluate. trunk: boundary
    -> the blocks below it, on the engine that runs them. cached, live: position of a stage in the
    plan -> a training step, on the cache (where it can have one) and from the pictures.
    """

    picture: float
    forward: float
    trunk: dict[int, float]
    cached: dict[int, float]
    live: dict[int, float]


def choose(parts: Parts, limit_s: float) -> Budget:
    """Return what fits `limit_s` seconds, counted by the watch of the parts.

    Leaves the weights as they were.
    """
    before = {n: t.detach().clone() for n, t in parts.classifier.state_dict().items()}
    speeds = measure(parts, limit_s)
    parts.classifier.load_state_dict(before)  # batch norm counts what it sees
    closing_s = closing(parts, speeds, None)
    budget = fitting(parts, speeds, limit_s - closing_s - parts.watch.total())
    if (base := base_if_cached(parts, budget)) is not None:  # then the end takes less
        shorter_s = closing(parts, speeds, base)
        longer = fitting(parts, speeds, limit_s - shorter_s - parts.watch.total())
        if base_if_cached(parts, longer) == base:
            budget, closing_s = longer, shorter_s
    return replace(budget, limit_s=limit_s, closing_s=closing_s)


def with_views(parts: Parts, budget: Budget) -> Parts:
    """Return the parts with as many views of each picture as a budget has chosen."""
    return replace(parts, material=replace(parts.material, num_views=budget.views))


def closing(parts: Parts, speeds: Speeds, base: int | None) -> float:
    """Return the seconds that the end takes: features from the cache at `base`, or without one."""
    material = parts.material
    checked = len(material.val) + len(material.reference)
    whole_s = speeds.trunk[len(parts.plan.groups)]
    if base is not None:
        return CLOSING_S + checked * max(0.0, whole_s - speeds.trunk[base])
    return CLOSING_S + checked * together(parts, speeds.picture, whole_s)


def base_if_cached(parts: Parts, budget: Budget) -> int | None:
    """Return the boundary of the lowest cache if all stages that are to run train on caches."""
    used = budget.used(parts.plan.stages)
    base = base_of(parts, used)
    return base if all(is_cached(parts, stage, base) for stage in used) else None


def measure(parts: Parts, limit_s: float) -> Speeds:
    """Time a few pictures on every way that a stage of the plan could take.

    A live stage that would take all of `limit_s` by far is taken for three times a forward pass.
    """
    groups, stages = len(parts.plan.groups), parts.plan.stages
    trunk = {groups: trunk_seconds(parts, groups, SAMPLE)}
    forward = forward_seconds(parts, SAMPLE)
    guess = forward / FORWARD_SHARE
    cached: dict[int, float] = {}
    live: dict[int, float] = {}
    for number, stage in enumerate(stages):
        apply_stage(parts.classifier, parts.column_of, stage)
        if is_cacheable(parts, stage):
            cached[number] = train_seconds(parts, stage, True, SAMPLE)
            live[number] = forward + cached[number]
            above = min(1.0, cached[number] * FORWARD_SHARE / forward)  # of the whole network
            trunk.setdefault(stage.boundary, trunk[groups] * (1 - above))
        elif 2 * guess * len(parts.material.train) < limit_s:  # two epochs
            live[number] = train_seconds(parts, stage, False, SAMPLE)
        else:
            live[number] = guess
    return Speeds(seconds_per_picture(parts), forward, trunk, cached, live)


def together(parts: Parts, *seconds: float) -> float:
    """Return what kinds of work take beside each other: on a CPU they share it."""
    return sum(seconds) if parts.device.type == "cpu" else max(seconds)


def fitting(parts: Parts, speeds: Speeds, left_s: float) -> Budget:
    """Return the deepest plan that fits, with as many views as are cheap beside it."""
    stages = parts.plan.stages
    for last in range(len(stages) - 1, -1, -1):
        base = base_of(parts, stages[: last + 1])
        views = views_for(parts, speeds, base, left_s)
        costs = [cost(parts, speeds, number, base, views) for number in range(len(stages))]
        if last == 0 or deepest_that_fits(costs, left_s) >= last:
            break
    epochs = allocate(costs, left_s)
    epochs[0] = max(1.0, epochs[0])
    return Budget(0.0, 0.0, costs, epochs, views)


def base_of(parts: Parts, stages: Sequence[PlannedStage]) -> int | None:
    """Return the boundary of the lowest cache of these stages that fits the disk's share."""
    most = parts.settings.budget_bytes
    return next((base for base, needed in needs(parts, stages) if needed <= most), None)


def views_for(parts: Parts, speeds: Speeds, base: int | None, left_s: float) -> int:
    """Return how many views of each picture to compute: what was configured, or what is cheap."""
    material, augment = parts.material, parts.config.augment
    if base is None or augment.level == "none" or augment.views is not None:
        return material.num_views
    row_s = together(parts, speeds.picture, speeds.trunk[base])
    rows = EXTRACTION_SHARE * left_s / row_s - len(material.val)
    return max(1, min(MOST_VIEWS, math.floor(rows / len(material.train))))


def cost(parts: Parts, speeds: Speeds, number: int, base: int | None, views: int) -> StageCost:
    """Return what a stage takes when caches begin at `base`, None for none of them."""
    material, stage = parts.material, parts.plan.stages[number]
    rows = len(material.train) * views + len(material.val)
    cached = base is not None and number in speeds.cached and stage.boundary >= base
    setup = 0.0
    if base is not None and number == 0:
        setup += rows * together(parts, speeds.picture, speeds.trunk[base])
    if cached:
        train = speeds.cached[number]
        validate = train * FORWARD_SHARE
        if base is not None and stage.boundary > base:
            setup += rows * max(0.0, speeds.trunk[stage.boundary] - speeds.trunk[base])
    else:
        train = together(parts, speeds.picture, speeds.live[number])
        validate = together(parts, speeds.picture, speeds.forward)
    return StageCost(
        wished=stage.epochs,
        least=max(min(2, stage.epochs), math.ceil(FEWEST * stage.epochs)),
        setup_s=setup,
        train_s=len(material.train) * train,
        validate_s=len(material.val) * validate,
    )


def notice_of(parts: Parts, budget: Budget) -> Notice:
    """Say what was chosen, or that the time is too short for anything."""
    first, stages = budget.costs[0], zip(parts.plan.stages, budget.epochs, strict=True)
    chosen = [f"{stage.name} {epochs:.3g} epochs" for stage, epochs in stages if epochs]
    left_s = budget.limit_s - budget.closing_s - parts.watch.total()
    short = first.setup_s + first.epoch_s - left_s
    total = duration_text(budget.limit_s)
    if short > 0:
        least = duration_text(budget.limit_s + short)
        text = f"a budget of {total} is too short for these pictures: about {least} are needed"
        return Notice(f"{text}; one short stage runs", warning=True)
    views = "1 view" if budget.views == 1 else f"{budget.views} views"
    return Notice(
        f"{total} allow {', '.join(chosen)}, on {views} of each picture; "
        f"{duration_text(budget.closing_s)} are kept for the end"
    )
