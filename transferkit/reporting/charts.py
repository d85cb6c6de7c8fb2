"""Charts as inline SVG that takes its colours from the page, so it follows dark mode and print.

Positions are percentages of the chart and text keeps its size in pixels, so that one drawing fits a
phone and a wide screen; only the inner, stretched picture (lines, bands) has no text.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

LEFT, RIGHT, TOP, BOTTOM = 11.0, 98.0, 10.0, 86.0  # of the plot, in percent of the chart
INNER = 1000  # units of the stretched picture, both ways
MOST_MARKED = 40  # more points than this get no markers of their own
NARROW_BAND = 0.16  # of the width: a stage's name fits into it, also on a phone


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`. form: formats a tick. whole: integer ticks."""

    name: str
    low: float
    high: float
    form: Callable[[float], str] = "{:g}".format
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value, 0 at `low` and 1 at `high`."""
        if self.log:
            span = math.log(self.high / self.low)
            return math.log(max(value, self.low / 10) / self.low) / span
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return at most about six round values within the axis."""
        linear = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        locator = LogLocator(numticks=6) if self.log else linear
        values = map(float, locator.tick_values(self.low, self.high))
        return [v for v in values if -1e-9 <= self.place(v) <= 1 + 1e-9]


@dataclass(frozen=True)
class Line:
    """Values over x; NaN is a gap. tone: 0..9, a colour of the style sheet."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: int
    dashed: bool = False
    marked: bool = True


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name written above it."""

    name: str
    left: float
    right: float


@dataclass(frozen=True)
class Mark:
    """A labelled point."""

    x: float
    y: float
    text: str


def axis_over(
    name: str,
    values: Sequence[float],
    form: Callable[[float], str] = "{:g}".format,
    least: float = 0.0,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Axis:
    """Return an axis with a margin around all finite values, that spans at least `least`.

    limits: of the quantity, and so of the axis.
    """
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 1e-9)
    return Axis(name, max(limits[0], low - room), min(limits[1], high + room), form)


def line_chart(
    description: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    bands: Sequence[Band] = (),
    mark: Mark | None = None,
) -> Markup:
    """Draw lines over common axes. description: text alternative of the picture."""
    stretched = [_band(b, x, even=i % 2 == 0) for i, b in enumerate(bands)]
    stretched += [_path(line, x, y) for line in lines]
    fixed = [*_ticks(x, y), *_band_names(bands, x)]
    fixed += [dot for line in lines if line.marked for dot in _dots(line, x, y)]
    fixed += [_mark(mark, x, y)] if mark else []
    return Markup(
        '<svg class="chart" role="img" aria-label="{d}"><title>{d}</title>{grid}'
        '<svg x="{left}%" y="{top}%" width="{width}%" height="{height}%" '
        'viewBox="0 0 {n} {n}" preserveAspectRatio="none" class="plot">{stretched}</svg>'
        "{fixed}</svg>"
    ).format(
        d=description,
        grid=Markup("").join(_grid(y)),
        left=LEFT,
        top=TOP,
        width=RIGHT - LEFT,
        height=BOTTOM - TOP,
        n=INNER,
        stretched=Markup("").join(stretched),
        fixed=Markup("").join(fixed),
    )


def timeline(parts: Sequence[tuple[str, float, int]]) -> Markup:
    """Draw (name, seconds, tone) one after another as one bar, each as wide as it took."""
    total = sum(seconds for _, seconds, _ in parts) or 1.0
    starts = itertools.accumulate((seconds for _, seconds, _ in parts), initial=0.0)
    rect = Markup(
        '<rect class="fill-{tone}" x="{x:.3f}%" width="{w:.3f}%" height="100%">'
        "<title>{name}: {s:.1f} s</title></rect>"
    )
    drawn = [
        rect.format(tone=tone, x=100 * start / total, w=100 * s / total, name=name, s=s)
        for (name, s, tone), start in zip(parts, starts, strict=False)
    ]
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds, _ in parts)
    return Markup('<svg class="timeline" role="img" aria-label="{text}">{drawn}</svg>').format(
        text=f"time by part: {text}", drawn=Markup("").join(drawn)
    )


def matrix(description: str, shades: Sequence[tuple[int, int, float, str]], size: int) -> Markup:
    """Draw the cells of a large square matrix.

    shades: (row, column, 0..1, text) of the cells that are not empty.
    """
    rect = Markup(
        '<rect class="{kind}" x="{x}" y="{y}" width="1" height="1" fill-opacity="{shade:.2f}">'
        "<title>{text}</title></rect>"
    )
    cells = [
        rect.format(kind="right" if y == x else "wrong", x=x, y=y, shade=0.12 + 0.88 * s, text=text)
        for y, x, s, text in shades
    ]
    return Markup(
        '<svg class="matrix" role="img" aria-label="{d}" viewBox="0 0 {n} {n}">{cells}</svg>'
    ).format(d=description, n=size, cells=Markup("").join(cells))


def _x_pct(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _y_pct(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def _grid(y: Axis) -> list[Markup]:
    line = Markup('<line class="grid" x1="{l}%" x2="{r}%" y1="{y:.2f}%" y2="{y:.2f}%"/>')
    return [line.format(l=LEFT, r=RIGHT, y=_y_pct(y.place(v))) for v in y.ticks()]


def _ticks(x: Axis, y: Axis) -> list[Markup]:
    text = Markup('<text class="tick {c}" x="{x:.2f}%" y="{y:.2f}%" dx="{dx}" dy="{dy}">{t}</text>')
    below = [("mid", _x_pct(x.place(v)), BOTTOM, 0, 16, x.form(v)) for v in x.ticks()]
    left = [("end", LEFT, _y_pct(y.place(v)), -6, 4, y.form(v)) for v in y.ticks()]
    name = ("end", RIGHT, 100, 0, -4, x.name)
    keys = ("c", "x", "y", "dx", "dy", "t")
    return [text.format(**dict(zip(keys, each, strict=True))) for each in (*below, *left, name)]


def _band(band: Band, x: Axis, even: bool) -> Markup:
    left, right = (INNER * x.place(v) for v in (band.left, band.right))
    form = Markup('<rect class="{c}" x="{x:.1f}" y="0" width="{w:.1f}" height="{n}"/>')
    return form.format(c="band" if even else "no-band", x=left, w=right - left, n=INNER)


def _band_names(bands: Sequence[Band], x: Axis) -> list[Markup]:
    """Write the bands' names above them, or their numbers if one of them is too narrow."""
    spans = [(x.place(b.left), x.place(b.right)) for b in bands]
    roomy = all(right - left >= NARROW_BAND for left, right in spans)
    text = Markup('<text class="tick mid" x="{x:.2f}%" y="{y}%" dy="-6">{t}</text>')
    return [
        text.format(x=_x_pct((left + right) / 2), y=TOP, t=band.name if roomy else number)
        for number, (band, (left, right)) in enumerate(zip(bands, spans, strict=True), start=1)
    ]


def _path(line: Line, x: Axis, y: Axis) -> Markup:
    """Return the stroke of a line, interrupted where a value is missing."""
    parts, command = [], "M"
    for a, b in zip(line.x, line.y, strict=True):
        if math.isfinite(b):
            parts.append(f"{command}{INNER * x.place(a):.1f} {INNER * (1 - y.place(b)):.1f}")
        command = "L" if math.isfinite(b) else "M"
    kind = f"line stroke-{line.tone}" + (" dashed" if line.dashed else "")
    return Markup('<path class="{kind}" d="{d}"/>').format(kind=kind, d="".join(parts))


def _dots(line: Line, x: Axis, y: Axis) -> list[Markup]:
    """Return a dot for every value within the axis, with a tooltip."""
    points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if 0 <= y.place(b) <= 1]
    dot = Markup(
        '<circle class="fill-{t}" cx="{x:.2f}%" cy="{y:.2f}%" r="{r}"><title>{s}</title></circle>'
    )
    radius = 2.6 if len(points) <= MOST_MARKED else 1.4
    return [
        dot.format(t=line.tone, x=_x_pct(x.place(a)), y=_y_pct(y.place(b)), r=radius, s=text)
        for a, b in points
        for text in [f"{line.name}, {x.name} {x.form(a)}: {y.form(b)}"]
    ]


def _mark(mark: Mark, x: Axis, y: Axis) -> Markup:
    """Draw a ring around a point, and its text on the side that has room."""
    share, height = x.place(mark.x), y.place(mark.y)
    return Markup(
        '<circle class="ring" cx="{x:.2f}%" cy="{y:.2f}%" r="6"/>'
        '<text class="mark {side}" x="{x:.2f}%" y="{y:.2f}%" dy="{dy}">{text}</text>'
    ).format(
        x=_x_pct(share),
        y=_y_pct(height),
        side="end" if share > 0.5 else "start",
        dy=-11 if height < 0.8 else 20,
        text=mark.text,
    )
