"""The learning-rate range test as a figure."""

from typing import Any

from matplotlib.figure import Figure

from transferkit.evaluation.plots import BLUE, FAINT, ORANGE, styled
from transferkit.units import rate_text


def rate_range(test: Any) -> Figure:
    """Draw the losses of a `RangeTest` over the logarithmic rate, the lowest and the suggestion."""
    with styled():
        figure = Figure((7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.scatter(test.rates, test.losses, s=6, color=FAINT, alpha=0.5, label="single batches")
        axes.plot(test.rates, test.smoothed, color=BLUE, label="smoothed")
        top = 1.15 * max(test.smoothed)
        axes.axvline(test.suggestion, color=ORANGE, linewidth=1.4)
        axes.text(
            test.suggestion, top, f" suggested {rate_text(test.suggestion)}", color=ORANGE, va="top"
        )
        bottom = min(test.smoothed)
        axes.scatter([test.lowest], [bottom], color=BLUE, s=36, zorder=3)
        axes.annotate(
            f"lowest at {rate_text(test.lowest)}",
            (test.lowest, bottom),
            (0, -12),
            textcoords="offset points",
            ha="center",
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
        axes.set(xscale="log", ylim=(min(0.0, bottom), top))
        axes.set(xlabel="learning rate of the head", ylabel="training loss (nats)")
        axes.set_title(f"Learning-rate range test of stage {test.stage}")
        axes.legend(loc="lower left", frameon=False)
    return figure
