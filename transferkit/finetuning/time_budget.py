"""`--budget`: measure for a few seconds, and choose stages, epochs and views that fit the time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transferkit.events import Notice
from transferkit.finetuning.final_validation import MOST_REFERENCES
from transferkit.finetuning.session import Session
from transferkit.finetuning.speed import (
    forward_seconds,
    seconds_per_picture,
    train_seconds,
    trunk_seconds,
)
from transferkit.training.budget import Budget, StageCost, allocate, deepest_that_fits
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


def choose(session: Session, limit_s: float) -> Notice:
    """Choose what fits `limit_s` seconds, counted by the session's watch, and say what it is.

    Leaves the session with a budget, and the weights as they were.
    """
    before = {n: t.detach().clone() for n, t in session.classifier.state_dict().items()}
    speeds = measure(session, limit_s)
    session.classifier.load_state_dict(before)  # batch norm counts what it sees
    closing_s = closing(session, speeds, None)
    budget = fitting(session, speeds, limit_s - closing_s - session.watch.total())
    if (base := base_if_cached(session, budget)) is not None:  # then the end takes less
        shorter_s = closing(session, speeds, base)
        longer = fitting(session, speeds, limit_s - shorter_s - session.watch.total())
        if base_if_cached(session, longer) == base:
            budget, closing_s = longer, shorter_s
    take(session, replace(budget, limit_s=limit_s, closing_s=closing_s))
    return notice_of(session, limit_s - closing_s - session.watch.total())


def closing(session: Session, speeds: Speeds, base: int | None) -> float:
    """Return the seconds that the end takes: features from the cache at `base`, or without one."""
    material = session.sources.material
    checked = len(material.val) + min(len(material.train), MOST_REFERENCES)
    whole_s = speeds.trunk[len(session.plan.groups)]
    if base is not None:
        return CLOSING_S + checked * max(0.0, whole_s - speeds.trunk[base])
    return CLOSING_S + checked * together(session, speeds.picture, whole_s)


def base_if_cached(session: Session, budget: Budget) -> int | None:
    """Return the boundary of the lowest cache if all stages that are to run train on caches."""
    pairs = zip(session.plan.stages, budget.epochs, strict=True)
    used = [stage for stage, epochs in pairs if epochs]
    base = base_of(session, used)
    fits = base is not None and all(
        session.sources.cacheable(stage) and stage.boundary >= base for stage in used
    )
    return base if fits else None


def take(session: Session, budget: Budget) -> None:
    """Give a session a budget, and its pictures the views that go with it."""
    session.budget = budget
    session.sources.material = replace(session.sources.material, num_views=budget.views)


def measure(session: Session, limit_s: float) -> Speeds:
    """Time a few pictures on every way that a stage of the plan could take.

    A live stage that would take all of `limit_s` by far is taken for three times a forward pass.
    """
    sources, groups, stages = session.sources, len(session.plan.groups), session.plan.stages
    trunk = {groups: trunk_seconds(session, groups, SAMPLE)}
    forward = forward_seconds(session, SAMPLE)
    guess = forward / FORWARD_SHARE
    cached: dict[int, float] = {}
    live: dict[int, float] = {}
    for number, stage in enumerate(stages):
        apply_stage(session.classifier, session.column_of, stage)
        if sources.cacheable(stage):
            cached[number] = train_seconds(session, stage, True, SAMPLE)
            live[number] = forward + cached[number]
            above = min(1.0, cached[number] * FORWARD_SHARE / forward)  # of the whole network
            trunk.setdefault(stage.boundary, trunk[groups] * (1 - above))
        elif 2 * guess * len(sources.material.train) < limit_s:  # two epochs
            live[number] = train_seconds(session, stage, False, SAMPLE)
        else:
            live[number] = guess
    return Speeds(seconds_per_picture(session), forward, trunk, cached, live)


def together(session: Session, *seconds: float) -> float:
    """Return what kinds of work take beside each other: on a CPU they share it."""
    return sum(seconds) if session.sources.device.type == "cpu" else max(seconds)


def fitting(session: Session, speeds: Speeds, left_s: float) -> Budget:
    """Return the deepest plan that fits, with as many views as are cheap beside it."""
    stages = session.plan.stages
    for last in range(len(stages) - 1, -1, -1):
        base = base_of(session, stages[: last + 1])
        views = views_for(session, speeds, base, left_s)
        costs = [cost(session, speeds, number, base, views) for number in range(len(stages))]
        if last == 0 or deepest_that_fits(costs, left_s) >= last:
            break
    epochs = allocate(costs, left_s)
    epochs[0] = max(1.0, epochs[0])
    return Budget(0.0, 0.0, costs, epochs, views)


def base_of(session: Session, stages: Sequence[PlannedStage]) -> int | None:
    """Return the boundary of the lowest cache of these stages that fits the disk's share."""
    sources = session.sources
    boundaries = sorted({stage.boundary for stage in stages if sources.cacheable(stage)})
    sizes = {boundary: sources.cache_bytes(boundary) for boundary in boundaries}
    for boundary in boundaries:
        needed = sum(size for b, size in sizes.items() if b >= boundary)
        if needed <= sources.settings.budget_bytes:
            return boundary
    return None


def views_for(session: Session, speeds: Speeds, base: int | None, left_s: float) -> int:
    """Return how many views of each picture to compute: what was configured, or what is cheap."""
    material, augment = session.sources.material, session.config.augment
    if base is None or augment.level == "none" or augment.views is not None:
        return material.num_views
    row_s = together(session, speeds.picture, speeds.trunk[base])
    rows = EXTRACTION_SHARE * left_s / row_s - len(material.val)
    return max(1, min(MOST_VIEWS, math.floor(rows / len(material.train))))


def cost(session: Session, speeds: Speeds, number: int, base: int | None, views: int) -> StageCost:
    """Return what a stage takes when caches begin at `base`, None for none of them."""
    material, stage = session.sources.material, session.plan.stages[number]
    rows = len(material.train) * views + len(material.val)
    cached = base is not None and number in speeds.cached and stage.boundary >= base
    setup = 0.0
    if base is not None and number == 0:
        setup += rows * together(session, speeds.picture, speeds.trunk[base])
    if cached:
        train = speeds.cached[number]
        validate = train * FORWARD_SHARE
        if base is not None and stage.boundary > base:
            setup += rows * max(0.0, speeds.trunk[stage.boundary] - speeds.trunk[base])
    else:
        train = together(session, speeds.picture, speeds.live[number])
        validate = together(session, speeds.picture, speeds.forward)
    return StageCost(
        wished=stage.epochs,
        least=max(min(2, stage.epochs), math.ceil(FEWEST * stage.epochs)),
        setup_s=setup,
        train_s=len(material.train) * train,
        validate_s=len(material.val) * validate,
    )


def notice_of(session: Session, left_s: float) -> Notice:
    """Say what was chosen, or that the time is too short for anything."""
    budget, plan = session.budget, session.plan
    assert budget is not None
    parts = [
        f"{stage.name} {epochs:.3g} epochs"
        for stage, epochs in zip(plan.stages, budget.epochs, strict=True)
        if epochs
    ]
    first = budget.costs[0]
    short = first.setup_s + first.epoch_s - left_s
    total = duration_text(budget.limit_s)
    if short > 0:
        least = duration_text(budget.limit_s + short)
        text = f"a budget of {total} is too short for these pictures: about {least} are needed"
        return Notice(f"{text}; one short stage runs", warning=True)
    views = "1 view" if budget.views == 1 else f"{budget.views} views"
    return Notice(
        f"{total} allow {', '.join(parts)}, on {views} of each picture; "
        f"{duration_text(budget.closing_s)} are kept for the end"
    )
