"""A learning curve as a figure: error over the number of pictures, and each class's gain."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from transferkit.evaluation.plots import BLUE, FAINT, ORANGE, styled

MOST_CLASSES = 15


def learning_plot(curve: Any) -> Figure:
    """Draw a `LearningCurve` with its law and band, and beside it twice the pictures per class."""
    with styled():
        figure = Figure((9.6, 4.2), layout="constrained")
        axes, bars = figure.subplots(1, 2, width_ratios=(3, 2))
        numbers, law, low, high = zip(*curve.forecasts, strict=True)
        axes.fill_between(numbers, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(numbers, law, color=BLUE, linewidth=1, label="power law, 95 % band")
        axes.scatter(curve.pictures, curve.errors, color=ORANGE, s=24, zorder=3, label="measured")
        axes.set(xscale="log", xlabel="training pictures", ylabel="error out of sample")
        axes.set_xticks([*curve.pictures[::2], numbers[-1]], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(bottom=0)
        axes.set_title(f"Twice the pictures: {curve.twice.text}", wrap=True)
        axes.legend(loc="lower left", frameon=False)
        classes = sorted(curve.classes.items(), key=lambda item: -item[1][1].gain)[:MOST_CLASSES]
        for place, (_, (_, gain)) in enumerate(classes):
            colour = ORANGE if gain.verdict == "gains" else FAINT
            bars.plot((gain.low, gain.high), (place, place), color=colour, linewidth=2)
            bars.scatter([gain.gain], [place], color=colour, s=24, zorder=3)
        bars.set_yticks(range(len(classes)), [name for name, _ in classes])
        bars.invert_yaxis()
        bars.xaxis.set_major_formatter(PercentFormatter(1))
        bars.set(xlabel="accuracy gained", title="Twice the pictures of one class")
    return figure
