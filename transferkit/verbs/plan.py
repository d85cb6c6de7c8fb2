"""The verb `plan`: what `finetune` would do, and how long it would take, without doing it."""

from transferkit.config import Config
from transferkit.events import Show, Working
from transferkit.finetuning.session import Session, prepare
from transferkit.finetuning.speed import (
    forward_seconds,
    seconds_per_picture,
    train_seconds,
    trunk_seconds,
)
from transferkit.finetuning.summary import PlanRow
from transferkit.finetuning.time_budget import choose
from transferkit.stopwatch import Stopwatch
from transferkit.training.stages import PlannedStage, apply_stage
from transferkit.units import parse_duration


def plan(
    config: Config, show: Show, watch: Stopwatch | None = None
) -> tuple[list[PlanRow], list[str]]:
    """Return the plan's rows, with expected times from a short measurement, and its notices.

    watch: counts the time from the start of the command, which a budget of time counts as well.
    """
    session = prepare(config, show, watch)
    show(Working("measuring a few steps"))
    notices = []
    if config.training.lr == "auto":
        notices = ["finetune finds the first rate by a range test; shown is the usual one"]
    if config.training.budget is not None:
        return budget_rows(session, parse_duration(config.training.budget), notices)
    notices += [notice.text for notice in session.sources.choose_base(session.plan)]
    picture_s = seconds_per_picture(session)
    rows, cached_before = [], False
    for stage in session.plan.stages:
        row = plan_row(session, stage, picture_s, first_cached=not cached_before)
        cached_before = cached_before or row.cache_bytes > 0
        rows.append(row)
    return rows, notices


def budget_rows(
    session: Session, limit_s: float, notices: list[str]
) -> tuple[list[PlanRow], list[str]]:
    """Return the stages that a budget of time would begin with, and the notices."""
    with session.watch.on("measuring"):
        notices = [*notices, choose(session, limit_s).text]
    budget, rows = session.budget, []
    assert budget is not None
    notices += [notice.text for notice in session.sources.choose_base(session.used_plan)]
    for stage, epochs, cost in zip(session.plan.stages, budget.epochs, budget.costs, strict=True):
        if epochs:
            rows.append(described(session, stage, round(epochs, 1), cost.seconds(epochs)))
    return rows, notices


def plan_row(
    session: Session, stage: PlannedStage, picture_s: float, first_cached: bool
) -> PlanRow:
    """Measure one stage: a few training steps on random input of its boundary's shape."""
    sources = session.sources
    if stage.solves:
        count = len(sources.material.train) + len(sources.material.val)
        return described(session, stage, 1, count * max(picture_s, forward_seconds(session)))
    cached = sources.is_cached(stage)
    apply_stage(session.classifier, session.column_of, stage)
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
    return described(session, stage, stage.epochs, seconds)


def described(session: Session, stage: PlannedStage, epochs: float, seconds: float) -> PlanRow:
    """Return a stage's row: what it trains and keeps, and how long it is expected to take."""
    apply_stage(session.classifier, session.column_of, stage)
    named = list(session.classifier.named_parameters())
    cached = session.sources.is_cached(stage) and not stage.solves
    rates = [0.0 if stage.solves else stage.lr * mult for mult in stage.multipliers]
    return PlanRow(
        name=stage.name,
        epochs=epochs,
        lr_by_group=dict(zip(session.plan.columns, rates, strict=True)),
        trainable_parameters=sum(p.numel() for _, p in named if p.requires_grad and any(rates)),
        total_parameters=sum(p.numel() for _, p in named),
        cache_bytes=session.sources.cache_bytes(stage.boundary) if cached else 0,
        seconds=seconds,
        if_improving=stage.if_improving,
    )
