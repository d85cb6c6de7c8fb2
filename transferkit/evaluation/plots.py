"""The plots of a run folder. Each function returns a matplotlib Figure and changes no state."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from transferkit.evaluation.glyphs import drawable, font_families
from transferkit.units import rate_text

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with any colour vision
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, FAINT, BAND = "#222222", "#777777", "#F1F3F5"
RIGHT_SHADES = LinearSegmentedColormap.from_list("right", ["#F3F8FC", BLUE])
WRONG_SHADES = LinearSegmentedColormap.from_list("wrong", ["#FEF3EA", ORANGE, "#8C2D04"])

FONT_PT = 9.0
STYLE: dict[Any, Any] = {
    "font.size": FONT_PT,
    "text.color": INK,
    "text.parse_math": False,  # a class name may contain $
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": FONT_PT + 2,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
MOST_MARKED_EPOCHS = 30  # more points than this get small markers
LABEL_GAP_PT = 12.0


def curves(rows: Sequence[Row]) -> Figure:
    """Draw loss and accuracy, training and validation, over all epochs of all stages.

    rows: of metrics.csv, in order: stage, stage_name, train_loss, val_loss, train_accuracy,
    val_accuracy, and best (1 for the best epoch so far). Missing values are gaps.
    """
    with styled():
        figure = Figure((9.6, 3.9), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            _stage_bands(axes, rows)
            ends = []
            for split, name, colour in (("train", "train", ORANGE), ("val", "validation", BLUE)):
                values = _column(rows, f"{split}_{quantity}")
                _line(axes, values, colour, name)
                ends.append((_last(values), name, colour))
            _widen(axes, least=0.1)
            _label_ends(axes, ends)
            axes.set(xlabel="epoch", ylabel=quantity, title=quantity.capitalize())
        loss.set_ylabel("loss (nats)")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1))
        _mark_best(accuracy, rows)
    return figure


def learning_rates(rows: Sequence[Row], linear: bool = False) -> Figure:
    """Draw the learning rate of every block group at the end of each epoch.

    rows: of metrics.csv, with columns lr/<group>; a group without a value is frozen in that epoch.
    Below is their column momentum, where they have one. Rates below a tenth of the lowest peak, as
    at the end of a cosine, are clipped, unless the axis is `linear`. The labels show the groups'
    peaks in the last stage.
    """
    moves = any("momentum" in row for row in rows)
    with styled():
        figure = Figure((7.2, 5.6 if moves else 4.2), layout="constrained")
        axes, *below = figure.subplots(1 + moves, squeeze=False, height_ratios=[3, 1][: 1 + moves])[
            :, 0
        ]
        for lower in below:
            _line(lower, _column(rows, "momentum"), INK, "momentum", _stage_starts(rows))
            lower.set(ylabel="momentum", xlim=(0.5, len(rows) + 0.5))
        _stage_bands(axes, rows)
        names = _from_stem_to_head(rows)
        # dark at the top of the network, light at its bottom
        shades = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 0.95, max(2, len(names))))
        drawn = list(zip(names, shades[-len(names) :] if names else [], strict=True))
        rates = {name: _column(rows, name) for name in names}
        for name, shade in drawn:
            _line(axes, rates[name], shade, name.removeprefix("lr/"), _stage_starts(rows))
        peaks = [float(np.nanmax(r)) for r in rates.values() if np.nanmax(r, initial=0) > 0]
        if linear:
            axes.set_ylim(bottom=0)
        elif peaks:
            axes.set(yscale="log", ylim=(min(peaks) / 10, max(peaks) * 1.6))
        last = slice((_stage_starts(rows) or [0])[-1], None)
        peak_of = {name: float(np.fmax.reduce(rates[name][last], initial=0)) for name in names}
        texts = {name: f"{name.removeprefix('lr/')} {rate_text(peak_of[name])}" for name in names}
        _label_ends(axes, [(peak_of[n], texts[n], c) for n, c in drawn if peak_of[n] > 0])
        axes.set(xlabel="epoch", ylabel="learning rate at the end of the epoch")
        axes.set_title("Learning rate by block group")
    return figure


def confusion(matrix: ArrayLike, classes: Sequence[str], title: str = "Confusion matrix") -> Figure:
    """Draw counts (K, K), row = label, column = prediction; the shade is the share of the row.

    Correct predictions are blue, errors orange; cells show their counts where there is room. A row
    without pictures is hatched.
    """
    counts = np.asarray(matrix)
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)  # (K, K)
    names = [drawable(name, f"class {number}") for number, name in enumerate(classes)]
    side_in = min(12.0, 2.7 + 0.3 * len(classes))
    cell_pt = side_in * 72 / len(classes)
    label_in = 0.6 * FONT_PT / 72 * max(len(name) for name in names)
    with styled():
        figure = Figure((side_in + label_in + 0.4, side_in + label_in + 0.8), layout="constrained")
        axes = figure.subplots()
        right = np.eye(len(classes), dtype=bool)
        for hidden, shades, full in ((~right, RIGHT_SHADES, 1.0), (right, WRONG_SHADES, 0.6)):
            shown = np.ma.masked_array(shares, hidden | (counts == 0))
            axes.imshow(shown, cmap=shades, vmin=0, vmax=full)
        for row in np.flatnonzero(support == 0):
            axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor="#CCCCCC", hatch="////")
        _cell_counts(axes, counts, shares, cell_pt)
        _class_axes(axes, names, cell_pt)
        axes.set_title(title, loc="left", pad=22)
        key = "blue: correct, orange: wrong, shade: share of the row"
        axes.annotate(
            key, (0, 1), (0, 7), "axes fraction", "offset points", color=FAINT, fontsize=FONT_PT - 1
        )
    return figure


@contextmanager
def styled() -> Iterator[None]:
    """Apply the common style to figures created inside the context."""
    with matplotlib.rc_context({**STYLE, "font.family": font_families()}):
        yield


def _column(rows: Sequence[Row], name: str) -> Floats:
    """Return the values (epochs,) of a column; NaN where a row has none."""
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _last(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _from_stem_to_head(rows: Sequence[Row]) -> list[str]:
    """Return the lr/ columns from the stem to the head: groups near the stem unfreeze last."""
    columns = dict.fromkeys(name for row in rows for name in row if name.startswith("lr/"))
    return sorted(columns, key=lambda name: np.isfinite(_column(rows, name)).sum())


def _stage_starts(rows: Sequence[Row]) -> list[int]:
    """Return the positions of the rows that start a stage, including the first."""
    stages = [row.get("stage", 0) for row in rows]
    return [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]


def _line(axes: Axes, values: Floats, colour: Any, name: str, breaks: Sequence[int] = ()) -> None:
    """Draw values over epochs 1, 2, ..., with gaps before the positions `breaks`."""
    epochs = np.arange(1.0, len(values) + 1)
    inner = [position for position in breaks if position > 0]
    axes.plot(
        np.insert(epochs, inner, math.nan),
        np.insert(values, inner, math.nan),
        color=colour,
        label=drawable(name),
        marker="o",
        markersize=3.5 if len(values) <= MOST_MARKED_EPOCHS else 2,
    )


def _stage_bands(axes: Axes, rows: Sequence[Row]) -> None:
    """Shade every other stage and write the stages' names along the upper edge."""
    starts = _stage_starts(rows)
    edges = [start + 0.5 for start in [*starts, len(rows)]]
    for number, (left, right) in enumerate(itertools.pairwise(edges)):
        axes.axvspan(left, right, color=BAND if number % 2 == 0 else "white", zorder=0, lw=0)
    axes.set_xlim(0.5, max(1, len(rows)) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    names = [drawable(str(rows[start].get("stage_name", start))) for start in starts]
    epoch_pt = _size_pt(axes)[0] / max(1, len(rows))
    widths = np.diff(edges)
    if any(0.58 * FONT_PT * len(n) > w * epoch_pt for n, w in zip(names, widths, strict=True)):
        key = ",  ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
        axes.figure.supxlabel(f"stages:  {key}", fontsize=FONT_PT - 0.5, color=FAINT)
        names = [str(number) for number in range(1, len(names) + 1)]
    upper = axes.secondary_xaxis("top")
    centres = [(left + right) / 2 for left, right in itertools.pairwise(edges)]
    upper.set_xticks(centres, names, fontsize=FONT_PT - 0.5, color=FAINT)
    upper.tick_params(length=0, pad=2)
    upper.spines[:].set_visible(False)


def _widen(axes: Axes, least: float) -> None:
    """Widen the y axis to at least `least`, so that a tiny change does not fill the plot."""
    low, high = axes.get_ylim()
    missing = max(0.0, least - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write names beside the right edge at the height of their values, without overlaps.

    ends: (value, name, colour); values that are not finite are left out.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    scale = axes.yaxis.get_transform()
    bottom, top = scale.transform(np.array([low, high]))
    gap = LABEL_GAP_PT / _size_pt(axes)[1]
    finite = sorted((end for end in ends if math.isfinite(end[0])), key=lambda end: end[0])
    values = np.clip([value for value, _, _ in finite], low, high)
    heights = spread((scale.transform(values) - bottom) / (top - bottom), gap)
    for height, (_, name, colour) in zip(heights, finite, strict=True):
        axes.annotate(
            drawable(name),
            (1, height),
            (5, 0),
            "axes fraction",
            "offset points",
            color=colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )


def spread(heights: ArrayLike, gap: float) -> Floats:
    """Move ascending heights in 0..1 as little as possible to be at least `gap` apart.

    Neighbours that are too close form a block around their common centre (isotonic regression). If
    they do not fit into 0..1, the last ones exceed 1.
    """
    from sklearn.isotonic import isotonic_regression

    values = np.asarray(heights, dtype=np.float64)
    least = gap * np.arange(len(values))
    moved = isotonic_regression(values - least) + least if len(values) else values
    return np.maximum(np.minimum(moved, 1 - least[::-1]), least)


def _mark_best(axes: Axes, rows: Sequence[Row]) -> None:
    """Mark the epoch whose weights the run kept with a star."""
    best = [i for i, row in enumerate(rows) if row.get("best") and "val_accuracy" in row]
    if not best:
        return
    value = float(rows[best[-1]]["val_accuracy"])
    low, high = axes.get_ylim()
    lift_pt = -16 if value > low + 0.2 * (high - low) else 9
    axes.plot([best[-1] + 1], [value], "*", color=INK, markersize=11, zorder=5, label="best")
    axes.annotate(
        f"kept: {value:.1%}",
        (best[-1] + 1, value),
        (0, lift_pt),
        textcoords="offset points",
        ha="right" if best[-1] > len(rows) / 2 else "left",
        fontweight="bold",
    )


def _cell_counts(axes: Axes, counts: NDArray[Any], shares: Floats, cell_pt: float) -> None:
    """Write the nonzero counts into their cells, if a font of 4.5 points fits."""
    digits = len(str(int(counts.max(initial=0))))
    font_pt = min(FONT_PT, 0.42 * cell_pt, 1.4 * cell_pt / digits)
    if font_pt < 4.5:
        return
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > (0.55 if i == j else 0.4) else INK
        axes.text(j, i, f"{counts[i, j]}", color=colour, fontsize=font_pt, ha="center", va="center")


def _class_axes(axes: Axes, names: Sequence[str], cell_pt: float) -> None:
    """Label rows and columns; only every n-th if a font of 5 points does not fit."""
    font_pt = min(FONT_PT, max(5.0, 0.75 * cell_pt))
    ticks = range(0, len(names), max(1, math.ceil(6 / cell_pt)))
    shown = [names[i] for i in ticks]
    width_pt = 0.6 * font_pt * max(len(name) for name in shown)
    turned: dict[str, Any] = {}
    if width_pt > cell_pt:
        turned = {"rotation": 45 if cell_pt > 18 else 90, "ha": "right", "rotation_mode": "anchor"}
        turned |= {} if cell_pt > 18 else {"va": "center"}
    axes.set_xticks(ticks, shown, fontsize=font_pt, **turned)
    axes.set_yticks(ticks, shown, fontsize=font_pt)
    if cell_pt > 6:
        axes.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
        axes.grid(which="minor", color="#E3E6E8", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#E3E6E8")
    axes.set(xlabel="predicted", ylabel="label")


def _size_pt(axes: Axes) -> tuple[float, float]:
    """Estimate the width and height of the axes; the layout is only computed when drawn."""
    figure: Any = axes.figure
    grid: Any = axes.get_gridspec()
    width_in, height_in = figure.get_size_inches()
    return 0.78 * width_in * 72 / grid.ncols, 0.7 * height_in * 72
