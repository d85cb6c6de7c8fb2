"""What an experiment found, as plain values, and how it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transferkit.evaluation.plots import BLUE, FONT_PT, ORANGE, styled

# Okabe and Ito, as in `evaluation.plots`; the yellow is too faint for a line
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#888888")
PANEL_IN = (4.4, 3.5)


@dataclass(frozen=True)
class Line:
    """A curve. name: one colour in all panels. x: 0, 1, 2 ... unless given. dashed: theory."""

    name: str
    y: Sequence[float]
    x: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar. error: half the length of its whisker, 0 for none."""

    name: str
    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Panel:
    """One part of a figure. log: axes with a logarithmic scale, of "xy". share: y is one.

    bars, picture (H, W): drawn instead of, or beside, lines.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    lines: tuple[Line, ...] = ()
    log: str = ""
    share: bool = False
    bars: tuple[Bar, ...] = ()
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


def draw(finding: Finding) -> Figure:
    """Draw the panels side by side, with one legend for all lines below them."""
    names = list(dict.fromkeys(line.name for p in finding.panels for line in p.lines))
    with styled():
        width_in, height_in = PANEL_IN
        legend_in = 0.25 * -(-len(names) // 5)
        figure = Figure(
            (width_in * len(finding.panels), height_in + legend_in), layout="constrained"
        )
        every = figure.subplots(1, len(finding.panels), squeeze=False)[0]
        for axes, panel in zip(every, finding.panels, strict=True):
            _draw_panel(axes, panel, names)
        shown: dict[str, object] = {}
        for axes in every:
            for line in axes.lines:
                shown.setdefault(line.get_label(), line)
        handles = [shown[name] for name in names]
        if len(names) > 1:
            figure.legend(
                handles, names, loc="outside lower center", ncols=min(5, len(names)), frameon=False
            )
    return figure


def _draw_panel(axes: Axes, panel: Panel, names: list[str]) -> None:
    for line in panel.lines:
        place = names.index(line.name)
        x = line.x or range(len(line.y))
        style = "--" if line.dashed else "-" if place < len(COLOURS) else "-."
        axes.plot(
            x,
            line.y,
            style,
            color=COLOURS[place % len(COLOURS)],
            linewidth=1.1 if line.dashed else 1.8,
            label="_" if line.dashed else line.name,
        )
    if panel.bars:
        places = range(len(panel.bars))
        values = [bar.value for bar in panel.bars]
        errors = [bar.error for bar in panel.bars]
        axes.barh(places, values, xerr=errors if any(errors) else None, color=BLUE, ecolor=ORANGE)
        axes.set_yticks(places, [bar.name for bar in panel.bars])
        axes.invert_yaxis()
    if panel.picture is not None:
        inset = axes.inset_axes((0.68, 0.02, 0.3, 0.34))
        inset.imshow(panel.picture, cmap="gray", interpolation="nearest")
        inset.set(xticks=[], yticks=[])
    for axis in panel.log:
        axes.set(**{f"{axis}scale": "log"})
    if panel.share:
        (axes.xaxis if panel.bars else axes.yaxis).set_major_formatter(PercentFormatter(1))
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.set_title(panel.title, fontsize=FONT_PT + 1)
