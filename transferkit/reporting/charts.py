"""Charts as inline SVG that takes its colours from the page, so it follows dark mode and print.

Places are percentages of the chart and text keeps its size in pixels, so that one drawing fits a
phone and a wide screen; only what lies in the inner, stretched picture (lines, bands) has no text.
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
NARROW_BAND = 0.16  # a stage's name fits into this share of the width, also on a phone


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`. form: writes a tick. log: by magnitude; whole: no fractions."""

    name: str
    low: float
    high: float
    form: Callable[[float], str] = "{:g}".format
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0..1 from `low` to `high`; outside it for values outside."""
        if self.log:
            span = math.log(self.high / self.low)
            return math.log(max(value, self.low / 10) / self.low) / span
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return at most about six round values within the axis."""
        linear = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        locator = LogLocator(numticks=6) if self.log else linear
        values = [float(v) for v in locator.tick_values(self.low, self.high)]
        slack = 1e-9
        return [v for v in values if -slack <= self.place(v) <= 1 + slack]


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
    """A point worth a word."""

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
    """Return an axis that holds all finite values with a little room, and spans at least `least`.

    limits: what the quantity cannot leave; the axis does not either.
    """
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
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
    """Draw lines over common axes. description: what a reader who sees no picture is told."""
    stretched = [_band(b, x, even=i % 2 == 0) for i, b in enumerate(bands)]
    stretched += [_path(line, x, y) for line in lines]
    fixed = [*_ticks(x, y), *_band_names(bands, x)]
    fixed += [dot for line in lines for dot in _dots(line, x, y)]
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
    drawn = []
    for (name, seconds, tone), start in zip(parts, starts, strict=False):
        drawn.append(
            Markup(
                '<rect class="fill-{tone}" x="{x:.3f}%" width="{w:.3f}%" height="100%">'
                "<title>{name}: {seconds:.1f} s</title></rect>"
            ).format(
                tone=tone,
                x=100 * start / total,
                w=100 * seconds / total,
                name=name,
                seconds=seconds,
            )
        )
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds, _ in parts)
    return Markup('<svg class="timeline" role="img" aria-label="{text}">{drawn}</svg>').format(
        text=f"time by part: {text}", drawn=Markup("").join(drawn)
    )


def matrix(description: str, shades: Sequence[tuple[int, int, float, str]], size: int) -> Markup:
    """Draw the cells of a large square matrix.

    shades: (row, column, 0..1, text of the cell); cells that are not named stay empty.
    """
    cells = [
        Markup(
            '<rect class="{kind}" x="{x}" y="{y}" width="1" height="1" fill-opacity="{shade:.2f}">'
            "<title>{text}</title></rect>"
        ).format(
            kind="right" if row == column else "wrong",
            x=column,
            y=row,
            shade=0.12 + 0.88 * shade,
            text=text,
        )
        for row, column, shade, text in shades
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
    drawn = [
        text.format(c="mid", x=_x_pct(x.place(v)), y=BOTTOM, dx=0, dy=16, t=x.form(v))
        for v in x.ticks()
    ]
    drawn += [
        text.format(c="end", x=LEFT, y=_y_pct(y.place(v)), dx=-6, dy=4, t=y.form(v))
        for v in y.ticks()
    ]
    drawn.append(text.format(c="end", x=RIGHT, y=100, dx=0, dy=-4, t=x.name))
    return drawn


def _band(band: Band, x: Axis, even: bool) -> Markup:
    left, right = (INNER * x.place(v) for v in (band.left, band.right))
    form = Markup('<rect class="{c}" x="{x:.1f}" y="0" width="{w:.1f}" height="{n}"/>')
    return form.format(c="band" if even else "no-band", x=left, w=right - left, n=INNER)


def _band_names(bands: Sequence[Band], x: Axis) -> list[Markup]:
    """Write the bands' names above them; numbers, where one of them would have too little room."""
    spans = [(x.place(b.left), x.place(b.right)) for b in bands]
    roomy = all(right - left >= NARROW_BAND for left, right in spans)
    text = Markup('<text class="tick mid" x="{x:.2f}%" y="{y}%" dy="-6">{t}</text>')
    return [
        text.format(x=_x_pct((left + right) / 2), y=TOP, t=band.name if roomy else number)
        for number, (band, (left, right)) in enumerate(zip(bands, spans, strict=True), start=1)
    ]


def _known(line: Line) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(line.x, line.y, strict=True)]


def _path(line: Line, x: Axis, y: Axis) -> Markup:
    """Return the stroke of a line, interrupted where a value is missing."""
    parts, pen_down = [], False
    for a, b in _known(line):
        if not math.isfinite(b):
            pen_down = False
            continue
        place = f"{INNER * x.place(a):.1f} {INNER * (1 - y.place(b)):.1f}"
        parts.append(f"{'L' if pen_down else 'M'}{place}")
        pen_down = True
    kind = f"line stroke-{line.tone}" + (" dashed" if line.dashed else "")
    return Markup('<path class="{kind}" d="{d}"/>').format(kind=kind, d="".join(parts))


def _dots(line: Line, x: Axis, y: Axis) -> list[Markup]:
    """Return a dot for every value, which tells it when pointed at."""
    points = [(a, b) for a, b in _known(line) if math.isfinite(b) and 0 <= y.place(b) <= 1]
    if not line.marked:
        return []
    dot = Markup('<circle class="fill-{t}" cx="{x:.2f}%" cy="{y:.2f}%" r="{r}"><title>{s}</title>')
    end = Markup("</circle>")
    radius = 2.6 if len(points) <= MOST_MARKED else 1.4
    return [
        dot.format(
            t=line.tone,
            x=_x_pct(x.place(a)),
            y=_y_pct(y.place(b)),
            r=radius,
            s=f"{line.name}, {x.name} {x.form(a)}: {y.form(b)}",
        )
        + end
        for a, b in points
    ]


def _mark(mark: Mark, x: Axis, y: Axis) -> Markup:
    """Draw a ring around a point, and its text on the side that has room."""
    share = x.place(mark.x)
    above = y.place(mark.y) < 0.8
    return Markup(
        '<circle class="ring" cx="{x:.2f}%" cy="{y:.2f}%" r="6"/>'
        '<text class="mark {side}" x="{x:.2f}%" y="{y:.2f}%" dy="{dy}">{text}</text>'
    ).format(
        x=_x_pct(share),
        y=_y_pct(y.place(mark.y)),
        side="end" if share > 0.5 else "start",
        dy=-11 if above else 20,
        text=mark.text,
    )
