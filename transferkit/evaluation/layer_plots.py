"""Heat maps of the monitored layer statistics over depth and epochs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transferkit.evaluation.glyphs import drawable
from transferkit.evaluation.plots import (
    BLUE,
    FAINT,
    FONT_PT,
    INK,
    ORANGE,
    Floats,
    Row,
    _column,
    _label_ends,
    _last,
    _line,
    _stage_bands,
    _stage_starts,
    styled,
)

PANELS = (
    ("gradient_norm", "Gradient norm"),
    ("update_ratio", "Update-to-weight ratio"),
    ("activation_std", "Standard deviation of activations"),
    ("idle", "Dead or saturated units"),
)
GLOBAL_NORMS = {"median": "median", "95": "95 %", "max": "maximum"}
SMALLEST, LARGEST = 1e-12, 1e12  # of a logarithmic scale
GROUPS_AT_USUAL_HEIGHT = 14


def inside(rows: Sequence[Row], groups: Sequence[str]) -> Figure:
    """Draw the layer statistics: a panel per quantity, epochs along x, block groups along y.

    rows: of monitoring.csv. groups: (G + 1,) names from the stem to the head, which is on top. A
    gradient that vanishes or explodes from one block to the next is a change of colour along a
    column; an empty cell was frozen in that epoch, or has no such units.
    """
    epochs = list(dict.fromkeys((row["stage"], row["epoch"]) for row in rows))
    firsts = {key: next(r for r in rows if (r["stage"], r["epoch"]) == key) for key in epochs}
    with styled():
        height_in = 6.6 * max(1.0, len(groups) / GROUPS_AT_USUAL_HEIGHT)
        figure = Figure((10.4, height_in), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, (name, title) in zip(axes.flat, PANELS, strict=True):
            values = _grid(rows, epochs, groups, name)  # (G + 1, epochs)
            _heat_map(panel, values, share=name == "idle")
            panel.set_title(title)
            panel.set_yticks(range(len(groups)), [drawable(group) for group in groups])
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            _stages(panel, [firsts[key] for key in epochs])
        for panel in axes[-1]:
            panel.set_xlabel("epoch")
    return figure


def suggested_clip(rows: Sequence[Row]) -> float | None:
    """Return a --clip-norm that about 95 % of the steps keep; None where no norm was recorded."""
    values = [row["global_norm_95"] for row in rows if "global_norm_95" in row]
    return float(np.median(values)) if values else None


def gradients(rows: Sequence[Row], limit: float) -> Figure:
    """Draw median, 95 % and maximum of the gradient's norm over the steps of each epoch.

    rows: of monitoring.csv. limit: the --clip-norm in force, 0 for none: then one is suggested.
    """
    firsts = list({(row["stage"], row["epoch"]): row for row in rows}.values())
    with styled():
        figure = Figure((7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        _stage_bands(axes, firsts)
        ends = []
        for (name, text), colour in zip(GLOBAL_NORMS.items(), (BLUE, INK, ORANGE), strict=True):
            values = _column(firsts, f"global_norm_{name}")
            _line(axes, values, colour, text, _stage_starts(firsts))
            ends.append((_last(values), text, colour))
        clip = limit or suggested_clip(rows)
        if clip:
            axes.set_yscale("log")
            axes.axhline(clip, color=FAINT, linestyle="--")
            ends.append((clip, f"{'' if limit else 'suggested '}--clip-norm {clip:.2g}", FAINT))
        _label_ends(axes, ends)
        axes.set(xlabel="epoch", ylabel="norm of the gradient, all weights together")
        axes.set_title("Gradient norm over the steps of each epoch")
    return figure


def _grid(
    rows: Sequence[Row], epochs: Sequence[tuple[int, int]], groups: Sequence[str], name: str
) -> Floats:
    """Return values (G + 1, epochs) of a quantity; NaN where none was recorded."""
    values = np.full((len(groups), max(1, len(epochs))), np.nan)
    columns = ("dead", "saturated") if name == "idle" else (name,)
    for row in rows:
        recorded = [row[key] for key in columns if key in row]
        if recorded:
            values[row["depth"], epochs.index((row["stage"], row["epoch"]))] = max(recorded)
    return values


def _heat_map(axes: Axes, values: Floats, share: bool) -> None:
    """Draw values (G + 1, epochs) with a colour bar: shares linear, others logarithmic."""
    scale: Normalize = Normalize(0, 1)
    if not share:
        positive = values[np.isfinite(values) & (values > 0)]
        low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
        low, high = max(low, SMALLEST), min(high, LARGEST)
        middle = np.sqrt(low * high)
        scale = LogNorm(min(low, middle / 10), max(high, middle * 10))  # two decades at least
        values = np.where(values < low, low, values)
    extent = (0.5, values.shape[1] + 0.5, -0.5, values.shape[0] - 0.5)
    drawn = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="magma_r" if share else "viridis",
        norm=scale,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    if share:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))


def _stages(axes: Axes, firsts: Sequence[Row]) -> None:
    """Draw a line where a stage begins, and the stages' names along the upper edge."""
    if not firsts:
        return
    starts = _stage_starts(firsts)
    for start in starts[1:]:
        axes.axvline(start + 0.5, color="white", lw=3)
    upper = axes.secondary_xaxis("top")
    ends = [*starts[1:], len(firsts)]
    centres = [(start + end + 1) / 2 for start, end in zip(starts, ends, strict=True)]
    names = [drawable(str(firsts[start].get("stage_name", start))) for start in starts]
    narrow = any(
        end - start < 0.02 * len(n) * len(firsts)
        for start, end, n in zip(starts, ends, names, strict=True)
    )
    upper.set_xticks(centres, [str(i + 1) for i in range(len(names))] if narrow else names)
    upper.tick_params(length=0, pad=2, labelsize=FONT_PT - 0.5, labelcolor=FAINT)
    upper.spines[:].set_visible(False)
