"""Backbones to choose among as a figure: accuracy over speed, with the Pareto front."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
            axes.errorbar(row.speed, row.accuracy, row.error, fmt="o", color=colour, markersize=5)
            axes.lines[-1].set_alpha(1 if row.survived else 0.6)
            if number in named:
                text = f"{row.backbone}\n{row.image_size} px, {row.framing}"
                at, size = (row.speed, row.accuracy), FONT_PT - 2
                axes.annotate(
                    text, at, (5, -3), textcoords="offset points", va="top", fontsize=size
                )
        axes.set(xscale="log", xlabel="pictures per second through the network, on this machine")
        axes.set(ylabel="leave-one-out accuracy")
        axes.margins(x=0.25)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_title("Backbones: accuracy over speed")
        axes.legend(loc="lower left", frameon=False)
    return figure
