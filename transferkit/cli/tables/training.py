"""What plan and finetune print, as tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli.tables.results import SUMMARY_METRICS
from transferkit.console import print_lines, print_styled, print_table
from transferkit.units import bytes_text, count_text, duration_text, rate_text

if TYPE_CHECKING:
    from transferkit.finetuning.summary import PlanRow, RunSummary, StageSummary
    from transferkit.training.rate_range import RangeTest

ENDINGS = {"finished": "done", "stopped early": "early"}


def plan_table(rows: Sequence["PlanRow"]) -> None:
    """Print a plan: a column per stage, a row per block group with its learning rate.

    The network stands upright, head on top. Below: epochs, parameters, cache, expected time.
    """
    groups = list(dict.fromkeys(group for row in rows for group in row.lr_by_group))
    rates = [
        [group, *(rate_text(row.lr_by_group.get(group, 0)) for row in rows)]
        for group in reversed(groups)
    ]
    known = [row.seconds for row in rows if row.seconds is not None]
    below: list[list[Any]] = [
        ["epochs (maximum)", *(f"{row.epochs:g}" for row in rows)],
        ["parameters trained", *(count_text(row.trainable_parameters) for row in rows)],
        ["cache", *(bytes_text(row.cache_bytes) if row.cache_bytes else "live" for row in rows)],
    ]
    if known:
        times = ["" if row.seconds is None else duration_text(row.seconds) for row in rows]
        below.append(["expected time", *times])
    if any(row.if_improving for row in rows):
        conditions = ["if improving" if row.if_improving else "always" for row in rows]
        below.append(["runs", *conditions])
    headings = ["learning rate of", *(f"{i} {row.name}" for i, row in enumerate(rows, start=1))]
    print_table("Plan", headings, [*rates, None, *below])
    if known:
        total = f"expected total: {duration_text(sum(known))}"
        print_lines([f"{total}; stages end earlier when validation stops improving"])


def range_table(test: "RangeTest", plot: Path) -> None:
    """Print a range test: the smoothed loss at every third of a decade, and the suggestion."""
    wanted = [
        min(range(len(test.rates)), key=lambda n: abs(math.log(test.rates[n] / rate)))
        for rate in (*_thirds(test.rates[0], test.rates[-1]), test.suggestion, test.lowest)
    ]
    *_, suggested, lowest = wanted
    notes = {suggested: "suggested", lowest: "lowest"}
    rows = [
        [rate_text(test.rates[n]), f"{test.smoothed[n]:.3f}", notes.get(n, "")]
        for n in sorted(set(wanted))
    ]
    headings = ["learning rate", "smoothed loss", ""]
    print_table(f"Range test of stage {test.stage}", headings, rows)
    if test.diverged:
        print_lines([f"the loss diverged above {rate_text(test.rates[-1])}"])
    flag = "--lr" if test.stage == "head" else "--unfrozen-lr"
    print_styled(f"suggested learning rate: {rate_text(test.suggestion)}", "bold")
    print_lines([f"plot:   {plot}", f"use it: transferkit finetune ... {flag} {test.suggestion:g}"])
    print_lines(["        or let finetune run the test itself: --lr auto"])


def _thirds(first: float, last: float) -> list[float]:
    """Return the rates 1, 2 and 5 of every decade between two rates."""
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    every = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [rate for rate in every if first <= rate <= last]


def closing_table(summary: "RunSummary") -> None:
    """Print the results of a run: accuracy, weakest classes, time, and where things are."""
    print_lines([""])
    print_styled(_headline(summary), "bold")
    shown = [
        f"{name} {form(summary.metrics[key])}"
        for name, key, form in SUMMARY_METRICS
        if summary.metrics.get(key) is not None
    ]
    print_styled(" · ".join(shown), "dim")
    if (first := summary.pretraining) is not None:
        figures = " · ".join(f"{n.replace('_', ' ')} {v:.3g}" for n, v in first["figures"].items())
        text = f"pretraining: {first['method']}, {first['epochs']} epochs of {first['pictures']:,}"
        print_styled(f"{text} pictures in {duration_text(first['seconds'])} · {figures}", "dim")
    if (left_out := summary.leave_one_out) is not None:
        print_styled(left_out_text(left_out), "dim")
    if summary.folds is not None:
        print_styled(folds_text(summary.folds), "dim")
    if summary.weak_classes:
        weak = [
            [c.name, f"{c.recall:.1%}", c.support, f"{c.confused_with} ({c.confused_count})"]
            for c in summary.weak_classes
        ]
        headings = ["class", "recall", "pictures", "most confused with"]
        print_table("Weakest classes", headings, weak)
    headings = ["stage", "epochs", "s/epoch", "pictures/s", "trunk", "time", "accuracy", "ended"]
    cells = [_stage_cells(stage) for stage in summary.stages]
    if any(stage.clipped is not None for stage in summary.stages):
        headings.append("clipped")
        for row, stage in zip(cells, summary.stages, strict=True):
            row.append("" if stage.clipped is None else f"{stage.clipped:.1%}")
    print_table("Stages", headings, cells)
    time_table(summary)
    if summary.zero_weights is not None:
        print_lines(["{:,} of {:,} weights under L1 are zero".format(*summary.zero_weights)])
    if summary.diagnosis:
        print_lines([""])
        print_styled("Diagnosis", "bold")
    for line in summary.diagnosis:
        print_styled(line, "yellow")
    print_lines([""])
    for name, path in {"run folder": summary.run, **summary.files}.items():
        print_lines([f"{name:<12} {path}"])
    predict = f"transferkit predict {summary.run} PICTURES..."
    print_lines([f"{'next':<12} {predict}"])


def left_out_text(figures: Mapping[str, Any]) -> str:
    """Say what leave-one-out of the first solve says of the training pictures."""
    low, high = (f"{100 * figures[name]:.1f}" for name in ("low", "high"))
    text = f"first solve: leave-one-out accuracy {figures['accuracy']:.1%} ({low} to {high} %) "
    return f"{text}of {figures['pictures']:,} training pictures"


def folds_text(figures: Mapping[str, Any]) -> str:
    """Say what folds say: every picture by a model that has not seen its fold."""
    rates = figures["by_fold"]
    text = (
        f"out of fold: accuracy {figures['accuracy']:.1%} of {figures['pictures']:,} pictures; in "
    )
    return f"{text}{len(rates)} folds {min(rates):.1%} to {max(rates):.1%}"


def time_table(summary: "RunSummary") -> None:
    """Print where the time went: a row per part of the work, a column per stage.

    What rounds to 0.0 s is left blank, and a part that is blank everywhere is left out.
    """
    ran = [stage for stage in summary.stages if stage.epochs]
    rows = [
        [part, *map(_seconds_text, (*_by_stage(summary, part), seconds))]
        for part, seconds in summary.parts.items()
        if _seconds_text(seconds)
    ]
    if rows:
        sums = [stage.seconds for stage in ran]
        outside = summary.seconds - sum(sums)
        totals = ["total", *map(_seconds_text, (*sums, outside, summary.seconds))]
        headings = ["seconds", *(stage.name for stage in ran), "outside", "total"]
        print_table("Where the time went", headings, [*rows, None, totals])
    print_lines([f"{duration_text(summary.seconds)} in total"])


def _by_stage(summary: "RunSummary", part: str) -> list[float]:
    """Return the seconds of one part in each stage that ran, and last outside of them."""
    own = [stage.parts.get(part, 0.0) for stage in summary.stages if stage.epochs]
    return [*own, summary.parts[part] - sum(own)]


def _seconds_text(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 0.05 else ""


def _headline(summary: "RunSummary") -> str:
    accuracy = summary.metrics["accuracy"]
    how = "validation pictures"
    if summary.folds is not None and summary.folds["pictures"] == summary.val_pictures:
        how = "pictures out of fold"
    text = f"accuracy {accuracy:.1%} on {summary.val_pictures:,} {how}"
    text += f" of {summary.classes:,} classes"
    if summary.head_only_accuracy is None or len(summary.stages) < 2:
        return text
    gain = 100 * (accuracy - summary.head_only_accuracy)
    return f"{text} (head only {summary.head_only_accuracy:.1%}: {gain:+.1f} points)"


def _stage_cells(stage: "StageSummary") -> list[Any]:
    ending = ENDINGS.get(stage.reason, stage.reason.split(":")[0])
    if not stage.epochs:
        return [stage.name, 0, "", "", "", "", "", ending]
    return [
        stage.name,
        stage.epochs,
        f"{stage.seconds_per_epoch:.2f}",
        f"{stage.pictures_per_second:,.0f}",
        "cached" if stage.cached else "live",
        duration_text(stage.seconds),
        f"{stage.best_accuracy:.1%}",
        ending,
    ]
