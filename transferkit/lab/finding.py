"""What an experiment found, as plain values, and how it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transferkit.evaluation.plots import BLUE, FONT_PT, ORANGE, styled

# Okabe and Ito, as in `evaluation.plots`; the yellow is too faint for a line
COLOURS = (
    BLUE,
    ORANGE,
    "#009E73",
    "#CC79A7",
    "#000000",
    "#56B4E9",
    "#E69F00",
    "#888888",
    "#7F3C8D",
)
STYLES = ("-", "-.")
PANEL_IN = (4.4, 3.5)


@dataclass(frozen=True)
class Line:
    """A curve, or a point. name: one colour in all panels. x: 0, 1, 2 ... unless given.

    dashed: theory, or something to compare with.
    """

    name: str
    y: Sequence[float]
    x: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One part of a figure. log: axes with a logarithmic scale, of "xy". share: y is one.

    bottom: of the y axis.
    bars: name -> values, drawn as dots over a bar to their mean, in place of lines; with picture
    (H, W) beside them.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    lines: tuple[Line, ...] = ()
    log: str = ""
    share: bool = False
    bottom: float | None = None
    bars: Mapping[str, Sequence[float]] | None = None
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Finding:
    """The outcome of an experiment.

    sentences: three, made of what was measured. table: headings, then rows; or nothing.
    """

    title: str
    panels: tuple[Panel, ...]
    sentences: tuple[str, str, str]
    table: tuple[tuple[str, ...], ...] = ()


def lines(
    values: Mapping[str, Sequence[float]], x: Sequence[float] = (), dashed: bool = False
) -> tuple[Line, ...]:
    """Return a curve for each name."""
    return tuple(Line(name, y, x, dashed) for name, y in values.items())


def top(values: Mapping[str, float]) -> str:
    """Return the name of the largest value."""
    return max(values, key=lambda name: values[name])


def draw(finding: Finding) -> Figure:
    """Draw the panels side by side, with one legend for all lines below them."""
    names = list(dict.fromkeys(line.name for p in finding.panels for line in p.lines))
    width_in, height_in = PANEL_IN
    with styled():
        size = (width_in * len(finding.panels), height_in + 0.25 * -(-len(names) // 5))
        figure = Figure(size, layout="constrained")
        every = figure.subplots(1, len(finding.panels), squeeze=False)[0]
        for axes, panel in zip(every, finding.panels, strict=True):
            (_draw_bars if panel.bars else _draw_lines)(axes, panel, names)
            axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
            axes.set_title(panel.title, fontsize=FONT_PT + 1)
        if len(names) > 1:
            found = {line.get_label(): line for axes in every[::-1] for line in axes.lines}
            handles, columns = [found[name] for name in names], min(5, len(names))
            figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _draw_lines(axes: Axes, panel: Panel, names: list[str]) -> None:
    for line in panel.lines:
        place = names.index(line.name)
        axes.plot(
            line.x or range(len(line.y)),
            line.y,
            "o" if len(line.y) == 1 else "--" if line.dashed else STYLES[place // len(COLOURS)],
            color=COLOURS[place % len(COLOURS)],
            linewidth=1.1 if line.dashed else 1.8,
            label="_" if line.dashed else line.name,
        )
    for axis in panel.log:
        axes.set(**{f"{axis}scale": "log"})
    axes.set_ylim(bottom=panel.bottom)
    if panel.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_bars(axes: Axes, panel: Panel, names: list[str]) -> None:
    bars = panel.bars or {}
    axes.barh(range(len(bars)), [float(np.mean(v)) for v in bars.values()], color=BLUE, alpha=0.4)
    for place, values in enumerate(bars.values()):
        heights = place + np.linspace(-0.3, 0.3, len(values))
        axes.plot(values, heights, "o", color=ORANGE, markersize=2.5)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set(xlim=(0, 1.5), xticks=np.linspace(0, 1, 6))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if panel.picture is not None:
        inset = axes.inset_axes((0.7, 0.3, 0.3, 0.4))
        inset.imshow(panel.picture, cmap="gray", interpolation="nearest")
        inset.set(xticks=[], yticks=[])
