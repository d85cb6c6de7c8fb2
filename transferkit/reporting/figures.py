"""The charts of a report, drawn from what `gather` read; "" where there is nothing to draw."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from transferkit.reporting.charts import Axis, Band, Line, Mark, axis_over, line_chart, matrix
from transferkit.reporting.gather import Row, RunData
from transferkit.units import rate_text

VALIDATION, TRAINING, SAMPLED, QUIET = 0, 1, 6, 9  # tones of the style sheet
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


def epoch_axis(epochs: int) -> Axis:
    """Return the axis over epochs from 1."""
    return Axis("epoch", 0.5, epochs + 0.5, "{:.0f}".format, whole=True)


def quantity_axis(quantity: str, values: Sequence[float]) -> Axis:
    """Return the axis of "loss" or "accuracy"."""
    if quantity == "accuracy":
        return axis_over(quantity, values, percent, 0.1, (0.0, 1.0))
    return axis_over(quantity, values, least=0.1, limits=(0.0, math.inf))


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
    epochs = range(1, len(rows) + 1)
    train, val = column(rows, f"train_{quantity}"), column(rows, f"val_{quantity}")
    lines = [Line("training", epochs, train, TRAINING), Line("validation", epochs, val, VALIDATION)]
    axis = quantity_axis(quantity, train + val)
    best = [i for i, row in enumerate(rows) if row.get("best")]
    mark = None
    if best and quantity == "accuracy":
        mark = Mark(best[-1] + 1, val[best[-1]], f"kept: {val[best[-1]]:.1%}")
    finite = [v for v in val if math.isfinite(v)] or [math.nan]
    first, last = (axis.form(round(v, 3)) for v in (finite[0], finite[-1]))
    description = f"validation {quantity} over {len(rows)} epochs, from {first} to {last}"
    return line_chart(description, lines, epoch_axis(len(rows)), axis, stage_bands(rows), mark)


def by_block(rows: Sequence[Row], prefix: str, name: str) -> Markup | str:
    """Draw a column per block group on a logarithmic axis; a gap is a frozen group."""
    drawn = drawn_blocks(rows, prefix)
    if not drawn:
        return ""
    values = {n: column(rows, f"{prefix}/{n}") for n, _ in drawn}
    peaks = {n: max(v for v in values[n] if v > 0) for n, _ in drawn}
    # rates below a tenth of the lowest peak, where a cosine ends, lie below the axis
    axis = Axis(name, min(peaks.values()) / 10, max(peaks.values()) * 1.5, rate_text, log=True)
    epochs = range(1, len(rows) + 1)
    above = {n: [v if v >= axis.low else math.nan for v in values[n]] for n in peaks}
    lines = [Line(n, epochs, above[n], tone) for n, tone in drawn]
    highest = ", ".join(f"{n} {rate_text(peak)}" for n, peak in peaks.items())
    description = f"{name} by block group, highest: {highest}"
    return line_chart(description, lines, epoch_axis(len(rows)), axis, stage_bands(rows))


def outside_the_stages(summary: dict[str, Any]) -> dict[str, float]:
    """Return part -> seconds before the first stage and after the last one."""
    inside = [stage.get("parts", {}) for stage in summary["stages"]]  # {} in earlier releases
    parts = summary.get("parts", {})
    return {name: s - sum(each.get(name, 0.0) for each in inside) for name, s in parts.items()}


def time_rows(summary: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Return (part, seconds in each stage, outside of them and in all) of what took 0.1 s or more.

    Empty for a run of an earlier release, which did not record them.
    """
    stages, outside = [s.get("parts", {}) for s in summary["stages"]], outside_the_stages(summary)
    if not any(stages):
        return []
    return [
        (name, [*(parts.get(name, 0.0) for parts in stages), outside[name], seconds])
        for name, seconds in summary["parts"].items()
        if seconds >= 0.1
    ]


def stage_timeline(summary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return (part, seconds, tone) of all that took 1 % of the time or more, in order."""
    parts = outside_the_stages(summary)
    after = ("final validation", "plots", "report")
    before = [(n, s, 9 - i % 2) for i, (n, s) in enumerate(parts.items()) if n not in after]
    pairs = zip(summary["stages"], itertools.cycle(STAGE_TONES), strict=False)
    stages = [(stage["name"], stage["seconds"], tone) for stage, tone in pairs]
    end = [(n, parts[n], 8 + i) for i, n in enumerate(after) if n in parts]
    every = [(n, float(s), t) for n, s, t in (*before, *stages, *end)]
    total = sum(seconds for _, seconds, _ in every)
    return [part for part in every if part[1] >= 0.01 * total]


def confusion_shades(run: RunData) -> list[tuple[int, int, float, str]]:
    """Return (row, column, share of the row 0..1, text) of the cells that are not empty."""
    names, shades = run.classes, []
    for i, j in np.argwhere(run.confusion).tolist():
        count, support = run.confusion[i, j], run.confusion[i].sum()
        text = f"{names[i]} predicted as {names[j]}: {count} of {support}"
        shades.append((i, j, float(count / support), text))
    return shades


def large_confusion(run: RunData) -> Markup:
    """Draw the confusion matrix of many classes."""
    size = len(run.classes)
    description = f"confusion matrix of {size} classes; the table of pairs names its errors"
    return matrix(description, confusion_shades(run), size)


def reliability_chart(calibration: dict[str, Any]) -> Markup:
    """Draw accuracy against confidence: single passes, samples of MC dropout, and the diagonal."""
    lines = [Line("perfect", [0.0, 1.0], [0.0, 1.0], QUIET, dashed=True, marked=False)]
    cases = [("as trained", calibration["before"], TRAINING)]
    if calibration.get("sampled"):
        cases.append(("MC dropout", calibration["sampled"]["after"], SAMPLED))
    cases.append(("calibrated", calibration["after"], VALIDATION))
    for name, found, tone in cases:
        bins = [b for b in found["reliability"] if b["count"]]
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        lines.append(Line(name, x, y, tone))
    points = "; ".join(
        f"confidence {percent(b['confidence'])}, accuracy {percent(b['accuracy'])}" for b in bins
    )
    x_axis, y_axis = (Axis(name, 0.0, 1.0, percent) for name in ("confidence", "accuracy"))
    return line_chart(f"reliability: {points}", lines, x_axis, y_axis)


def coverage_chart(calibration: dict[str, Any]) -> Markup:
    """Draw the accuracy among the most certain pictures against the coverage."""
    points = calibration["risk_coverage"]
    shown = [p for p in points if p["coverage"] >= FEWEST_KEPT] or points[-1:]
    kept, values = [p["coverage"] for p in shown], [p["accuracy"] for p in shown]
    at = min(shown, key=lambda p: abs(p["coverage"] - 0.8))
    text = f"{percent(at['accuracy'])} of the most certain {percent(at['coverage'])}"
    return line_chart(
        f"accuracy: {text}; {percent(values[-1])} of all",
        [Line("accuracy", kept, values, VALIDATION, marked=False)],
        Axis("coverage (most certain first)", 0.0, 1.0, percent),
        quantity_axis("accuracy", values),
        mark=Mark(at["coverage"], at["accuracy"], text),
    )


def learning_chart(curve: dict[str, Any]) -> Markup:
    """Draw error over the number of training pictures: measured, by the law, and its band."""
    numbers, law, low, high = zip(*curve["forecasts"], strict=True)
    lines = [
        Line("band, low", numbers, low, QUIET, dashed=True, marked=False),
        Line("band, high", numbers, high, QUIET, dashed=True, marked=False),
        Line("power law", numbers, law, VALIDATION, marked=False),
        Line("measured", curve["pictures"], curve["errors"], TRAINING),
    ]
    start, end = min(numbers[0], curve["pictures"][0]) / 1.1, numbers[-1] * 1.1
    x = Axis("training pictures", start, end, "{:g}".format, log=True)
    y = axis_over("error", [*law, *low, *high, *curve["errors"]], percent, 0.05, (0.0, 1.0))
    mark = Mark(numbers[-1], law[-1], f"{percent(law[-1])} of {numbers[-1]:,}")
    first, last = curve["errors"][0], curve["errors"][-1]
    text = f"error from {percent(first)} of {numbers[0]:,} pictures to {percent(last)}"
    return line_chart(f"learning curve: {text}", lines, x, y, mark=mark)


def drawn_blocks(rows: Sequence[Row], prefix: str) -> list[tuple[str, int]]:
    """Return (name, tone) of the block groups with columns `prefix`/NAME, for `by_block`.

    In the order of their unfreezing: dark at the head, light at the stem.
    """
    names = dict.fromkeys(n for row in rows for n in row if n.startswith(f"{prefix}/"))
    columns = {name: column(rows, name) for name in names}
    columns = {name: values for name, values in columns.items() if any(v > 0 for v in values)}
    frozen = {n: sum(not math.isfinite(v) for v in values) for n, values in columns.items()}
    last = max(1, len(columns) - 1)
    return [
        (name.partition("/")[2], FIRST_BLOCK_TONE + i * (BLOCK_TONES - 1) // last)
        for i, name in enumerate(sorted(columns, key=frozen.__getitem__))
    ]
