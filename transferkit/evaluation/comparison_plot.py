"""The curves of several runs in one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transferkit.evaluation.plots import styled


def side_by_side(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw validation loss and accuracy of every run over all its epochs.

    runs: name -> rows of metrics.csv. A dot marks the epoch whose weights were kept.
    """
    with styled():
        figure = Figure((9.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2)
        columns = (("val_loss", "validation loss (nats)"), ("val_accuracy", "validation accuracy"))
        for axes, (column, label) in zip(panels, columns, strict=True):
            for number, (name, rows) in enumerate(runs.items()):
                values = [row[column] for row in rows]
                epochs = range(1, len(rows) + 1)
                colour = f"C{number % 10}"
                axes.plot(epochs, values, color=colour, linewidth=1.4, label=name)
                kept = [n for n, row in enumerate(rows) if row["best"]][-1:]
                axes.scatter([n + 1 for n in kept], [values[n] for n in kept], color=colour, s=30)
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].yaxis.set_major_formatter(PercentFormatter(1))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
