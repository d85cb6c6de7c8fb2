"""The charts of a report, drawn from what `gather` read; "" where there is nothing to draw."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from transferkit.reporting.charts import (
    Axis,
    Band,
    Line,
    Mark,
    axis_over,
    line_chart,
    matrix,
    timeline,
)
from transferkit.reporting.gather import Row, RunData
from transferkit.units import rate_text

VALIDATION, TRAINING, QUIET = 0, 1, 9  # tones of the style sheet
STAGE_TONES = (0, 6, 7, 4, 3)
FIRST_BLOCK_TONE = 2
BLOCK_TONES = 8
FEWEST_KEPT = 0.05  # the accuracy of a handful of pictures says nothing


def percent(value: float) -> str:
    """Write a share on an axis."""
    return f"{100 * value:.3g}%"


def column(rows: Sequence[Row], name: str) -> list[float]:
    """Return a column over the epochs; NaN where a row has none."""
    return [float(row.get(name, math.nan)) for row in rows]


def epoch_axis(rows: Sequence[Row]) -> Axis:
    """Return the axis over all epochs of all stages, from 1."""
    return Axis("epoch", 0.5, len(rows) + 0.5, "{:.0f}".format, whole=True)


def stage_bands(rows: Sequence[Row]) -> list[Band]:
    """Return the stretch of epochs that every stage took."""
    bands, start = [], 0
    for _, group in itertools.groupby(rows, key=lambda row: row["stage"]):
        stage = list(group)
        bands.append(Band(str(stage[0]["stage_name"]), start + 0.5, start + len(stage) + 0.5))
        start += len(stage)
    return bands


def curve(rows: Sequence[Row], quantity: str) -> Markup:
    """Draw a quantity on training and validation: "loss" or "accuracy"."""
    epochs = list(range(1, len(rows) + 1))
    train, val = column(rows, f"train_{quantity}"), column(rows, f"val_{quantity}")
    is_share = quantity == "accuracy"
    limits = (0.0, 1.0) if is_share else (0.0, math.inf)
    form = percent if is_share else "{:g}".format
    axis = axis_over(quantity, train + val, form, 0.1, limits)
    best = [i for i, row in enumerate(rows) if row.get("best")]
    mark = None
    if best and is_share:
        mark = Mark(best[-1] + 1, val[best[-1]], f"kept: {100 * val[best[-1]]:.1f}%")
    finite = [v for v in val if math.isfinite(v)] or [math.nan]
    told = f"validation {quantity} over {len(rows)} epochs, from {axis.form(round(finite[0], 3))}"
    return line_chart(
        f"{told} to {axis.form(round(finite[-1], 3))}",
        [Line("training", epochs, train, TRAINING), Line("validation", epochs, val, VALIDATION)],
        epoch_axis(rows),
        axis,
        stage_bands(rows),
        mark,
    )


def blocks(rows: Sequence[Row], prefix: str) -> list[str]:
    """Return the block groups that have columns `prefix`/NAME, the head first."""
    names = dict.fromkeys(n for row in rows for n in row if n.startswith(f"{prefix}/"))
    trained = {n: sum(math.isfinite(v) for v in column(rows, n)) for n in names}
    return [n.partition("/")[2] for n in sorted(names, key=lambda n: -trained[n])]


def block_tone(position: int, count: int) -> int:
    """Return the tone of a block group: dark at the head, light at the stem."""
    return FIRST_BLOCK_TONE + (position * (BLOCK_TONES - 1)) // max(1, count - 1)


def by_block(rows: Sequence[Row], prefix: str, name: str) -> Markup | str:
    """Draw a column per block group on a logarithmic axis; a gap is a frozen group."""
    drawn = drawn_blocks(rows, prefix)
    if not drawn:
        return ""
    values = {n: column(rows, f"{prefix}/{n}") for n, _ in drawn}
    peaks = {n: max(v for v in values[n] if v > 0) for n, _ in drawn}
    # rates below a tenth of the lowest peak, where a cosine ends, lie below the axis
    axis = Axis(name, min(peaks.values()) / 10, max(peaks.values()) * 1.5, rate_text, log=True)
    epochs = list(range(1, len(rows) + 1))
    above = {n: [v if v >= axis.low else math.nan for v in values[n]] for n in peaks}
    highest = [f"{n} {rate_text(peak)}" for n, peak in peaks.items()]
    return line_chart(
        f"{name} by block group, highest: " + ", ".join(highest),
        [Line(n, epochs, above[n], tone) for n, tone in drawn],
        epoch_axis(rows),
        axis,
        stage_bands(rows),
    )


def outside_the_stages(summary: dict[str, Any]) -> dict[str, float]:
    """Return part -> seconds before the first stage and after the last one."""
    own = [stage.get("parts", {}) for stage in summary["stages"]]  # {} in runs of earlier releases
    parts = summary.get("parts", {})
    return {name: s - sum(each.get(name, 0.0) for each in own) for name, s in parts.items()}


def time_rows(summary: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Return (part, seconds in each stage, outside of them and in all) of what took 0.1 s or more.

    None for a run of an earlier release, which did not look that closely.
    """
    stages, outside = summary["stages"], outside_the_stages(summary)
    if not any(stage.get("parts") for stage in stages):
        return []
    return [
        (
            name,
            [*(stage.get("parts", {}).get(name, 0.0) for stage in stages), outside[name], seconds],
        )
        for name, seconds in summary["parts"].items()
        if seconds >= 0.1
    ]


def stage_timeline(summary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return (what, seconds, tone) of everything the run spent time on, in the order it was done.

    Parts that took less than 1 % are left out, as nobody could see them.
    """
    parts = outside_the_stages(summary)
    after = ("final validation", "plots", "report")
    before = [(n, s, 9 - i % 2) for i, (n, s) in enumerate(parts.items()) if n not in after]
    stages = [
        (s["name"], s["seconds"], STAGE_TONES[i % len(STAGE_TONES)])
        for i, s in enumerate(summary["stages"])
    ]
    end = [(n, parts[n], 8 + i) for i, n in enumerate(after) if n in parts]
    every = [(n, float(s), t) for n, s, t in (*before, *stages, *end)]
    total = sum(seconds for _, seconds, _ in every)
    return [part for part in every if part[1] >= 0.01 * total]


def time_bar(summary: dict[str, Any]) -> Markup:
    """Draw where the time went."""
    return timeline(stage_timeline(summary))


def confusion_shades(run: RunData) -> list[tuple[int, int, float, str]]:
    """Return (row, column, share of the row 0..1, text) of the cells that are not empty."""
    counts = run.confusion
    support = counts.sum(axis=1)
    names = run.classes
    return [
        (
            int(i),
            int(j),
            float(counts[i, j] / support[i]),
            f"{names[i]} taken for {names[j]}: {counts[i, j]} of {support[i]}",
        )
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]


def large_confusion(run: RunData) -> Markup:
    """Draw the confusion matrix of many classes."""
    told = f"confusion matrix of {len(run.classes)} classes; the table of pairs names its errors"
    return matrix(told, confusion_shades(run), len(run.classes))


def reliability_chart(calibration: dict[str, Any]) -> Markup:
    """Draw accuracy against confidence, without and with the temperature, and the diagonal."""
    lines = [Line("perfect", [0.0, 1.0], [0.0, 1.0], QUIET, dashed=True, marked=False)]
    for name, when, tone in (
        ("as trained", "before", TRAINING),
        ("calibrated", "after", VALIDATION),
    ):
        bins = [b for b in calibration[when]["reliability"] if b["count"]]
        places = [b["confidence"] for b in bins]
        lines.append(Line(name, places, [b["accuracy"] for b in bins], tone))
    told = "; ".join(
        f"at {percent(p)} sure {percent(a)} right"
        for p, a in zip(lines[-1].x, lines[-1].y, strict=True)
    )
    share = Axis("confidence", 0.0, 1.0, percent)
    return line_chart(f"reliability: {told}", lines, share, Axis("accuracy", 0.0, 1.0, percent))


def coverage_chart(calibration: dict[str, Any]) -> Markup:
    """Draw the accuracy among the surest pictures against the share of pictures kept."""
    points = calibration["risk_coverage"]
    shown = [p for p in points if p["coverage"] >= FEWEST_KEPT] or points[-1:]
    kept, values = [p["coverage"] for p in shown], [p["accuracy"] for p in shown]
    at = min(shown, key=lambda p: abs(p["coverage"] - 0.8))
    told = f"{percent(at['accuracy'])} of the surest {percent(at['coverage'])}"
    return line_chart(
        f"accuracy: {told}; {percent(values[-1])} of all",
        [Line("accuracy", kept, values, VALIDATION, marked=False)],
        Axis("share kept, surest first", 0.0, 1.0, percent),
        axis_over("accuracy", values, percent, 0.1, (0.0, 1.0)),
        mark=Mark(at["coverage"], at["accuracy"], told),
    )


def drawn_blocks(rows: Sequence[Row], prefix: str) -> list[tuple[str, int]]:
    """Return (name, tone) of the block groups that `by_block` draws, for the legend."""
    names = [n for n in blocks(rows, prefix) if any(v > 0 for v in column(rows, f"{prefix}/{n}"))]
    return [(name, block_tone(i, len(names))) for i, name in enumerate(names)]
