"""Backbones to choose among as a figure: accuracy over speed, with the Pareto front."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, PercentFormatter

from transferkit.evaluation.plots import BLUE, FAINT, FONT_PT, ORANGE, styled


def choice_plot(choice: Any) -> Figure:
    """Draw the rows of a `Choice` with their standard errors; named are those that are marked."""
    with styled():
        figure = Figure((7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        front = sorted((choice.rows[n] for n in choice.front), key=lambda row: row.speed)
        speeds, accuracies = [r.speed for r in front], [r.accuracy for r in front]
        axes.plot(speeds, accuracies, color=BLUE, linewidth=1, zorder=1, label="Pareto front")
        named = dict.fromkeys((choice.best, choice.smallest, *choice.front))
        for number, row in enumerate(choice.rows):
            colour = ORANGE if number in (choice.best, choice.smallest) else BLUE
            colour = colour if number in named else FAINT
            axes.errorbar(
                row.speed,
                row.accuracy,
                row.error,
                fmt="o",
                color=colour,
                markersize=5,
                elinewidth=1,
            )
        by_speed = sorted((choice.rows[n] for n in named), key=lambda row: row.speed)
        for number, row in enumerate(by_speed):  # above and below in turn, not over each other
            above, text = number % 2, f"{row.backbone}\n{row.image_size} px, {row.framing}"
            axes.annotate(
                text,
                (row.speed, row.accuracy),
                (5, 4 if above else -4),
                textcoords="offset points",
                va="bottom" if above else "top",
                fontsize=FONT_PT - 2,
            )
        axes.set(xscale="log", xlabel="pictures per second through the network, on this machine")
        axes.set(ylabel="leave-one-out accuracy")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(LogFormatter())  # 30, not 3 × 10¹
        axes.margins(x=0.25)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title("Backbones: accuracy over speed")
        axes.legend(loc="lower left", frameon=False)
    return figure
