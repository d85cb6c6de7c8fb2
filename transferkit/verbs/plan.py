"""The verb `plan`: what `finetune` would do, and how long it would take, without doing it."""

from dataclasses import replace

from transferkit.config import Config
from transferkit.events import Show, Working
from transferkit.finetuning.preparation import prepare
from transferkit.finetuning.speed import (
    forward_seconds,
    seconds_per_picture,
    train_seconds,
    trunk_seconds,
)
from transferkit.finetuning.summary import PlanRow
from transferkit.finetuning.time_budget import choose, notice_of, with_views
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_choice import cache_bytes, choose_base, is_cached
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.units import parse_duration
from transferkit.verbs.pretraining_stage import pretraining_config


def plan(
    config: Config, show: Show, watch: Stopwatch | None = None
) -> tuple[list[PlanRow], list[str]]:
    """Return the plan's rows, with expected times from a short measurement, and its notices.

    watch: counts the time from the start of the command, which a budget of time counts as well.
    """
    notices = []
    if config.pretrains:
        notices = [f"first: {config.stages[0].text} on {pretraining_config(config).data.path}"]
        config = replace(config.after_pretraining, backbone=config.backbone)
    parts = prepare(config, show, watch)
    show(Working("measuring a few steps"))
    if config.training.lr == "auto":
        notices += ["finetune finds the first rate by a range test; shown is the usual one"]
    if config.training.budget is not None:
        return budget_rows(parts, parse_duration(config.training.budget), notices)
    base, told = choose_base(parts, parts.plan.stages)
    notices += [notice.text for notice in told]
    picture_s = seconds_per_picture(parts)
    rows, cached_before = [], False
    for stage in parts.plan.stages:
        row = plan_row(parts, stage, base, picture_s, first_cached=not cached_before)
        cached_before = cached_before or row.cache_bytes > 0
        rows.append(row)
    return rows, notices


def budget_rows(
    parts: Parts, limit_s: float, notices: list[str]
) -> tuple[list[PlanRow], list[str]]:
    """Return the stages that a budget of time would begin with, and the notices."""
    with parts.watch.on("measuring"):
        budget, rows = choose(parts, limit_s), []
    parts = with_views(parts, budget)
    base, told = choose_base(parts, budget.used(parts.plan.stages))
    notices += [notice.text for notice in (notice_of(parts, budget), *told)]
    for stage, epochs, cost in zip(parts.plan.stages, budget.epochs, budget.costs, strict=True):
        if epochs:
            rows.append(described(parts, stage, base, round(epochs, 1), cost.seconds(epochs)))
    return rows, notices


def plan_row(
    parts: Parts, stage: PlannedStage, base: int | None, picture_s: float, first_cached: bool
) -> PlanRow:
    """Measure one stage: a few training steps on random input of its boundary's shape."""
    material = parts.material
    if stage.solves:
        count = len(material.train) + len(material.val)
        larger = (
            (stage.side_px / material.maker.preprocessing.width_px) ** 2 if stage.side_px else 1
        )
        forward_s = larger * forward_seconds(parts)
        return described(parts, stage, base, 1, count * max(picture_s, forward_s))
    cached = is_cached(parts, stage, base)
    apply_stage(parts.classifier, parts.column_of, stage)
    epoch_s = len(material.train) * train_seconds(parts, stage, cached)
    if not cached:
        epoch_s = max(epoch_s, len(material.train) * picture_s)
        epoch_s += len(material.val) * (picture_s + forward_seconds(parts))
    seconds = stage.epochs * epoch_s
    if cached and first_cached and base is not None:
        seconds += material.num_rows * max(picture_s, trunk_seconds(parts, base))
    if stage is parts.plan.stages[0] and parts.config.training.batchnorm == "recalibrate":
        seconds += len(material.train) * max(picture_s, forward_seconds(parts))
    return described(parts, stage, base, stage.epochs, seconds)


def described(
    parts: Parts, stage: PlannedStage, base: int | None, epochs: float, seconds: float
) -> PlanRow:
    """Return a stage's row: what it trains and keeps, and how long it is expected to take."""
    apply_stage(parts.classifier, parts.column_of, stage)
    named = list(parts.classifier.named_parameters())
    cached = is_cached(parts, stage, base)
    rates = [0.0 if stage.solves else stage.lr * mult for mult in stage.multipliers]
    return PlanRow(
        name=stage.name,
        epochs=epochs,
        lr_by_group=dict(zip(parts.plan.columns, rates, strict=True)),
        trainable_parameters=sum(p.numel() for _, p in named if p.requires_grad and any(rates)),
        total_parameters=sum(p.numel() for _, p in named),
        cache_bytes=cache_bytes(parts, stage.boundary) if cached else 0,
        seconds=seconds,
        if_improving=stage.if_improving,
    )
