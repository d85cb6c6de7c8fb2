"""The reliability diagram: what was promised against what came true, before and after."""

from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transferkit.evaluation.plots import BLUE, FAINT, ORANGE, styled
from transferkit.evaluation.reliability import ReliabilityBin


class Reliable(Protocol):
    """What is drawn of a set of probabilities."""

    @property
    def ece(self) -> float:
        """The expected calibration error."""

    @property
    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """Bins of equal width."""


def reliability(before: Reliable, after: Reliable) -> Figure:
    """Draw accuracy against confidence; the area of a point grows with the pictures in its bin."""
    with styled():
        figure = Figure((8.6, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        most = max((item.count for item in (*before.reliability, *after.reliability)), default=1)
        drawn = (("as the network says", before, ORANGE), ("with the temperature", after, BLUE))
        for axes, (title, data, colour) in zip(panels, drawn, strict=True):
            there = [item for item in data.reliability if item.count]
            axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle="--")
            x, y = [b.confidence for b in there], [b.accuracy for b in there]
            axes.plot(x, y, color=colour, linewidth=1)
            axes.scatter(x, y, s=[12 + 150 * b.count / most for b in there], color=colour, zorder=3)
            axes.set(title=f"{title}: ECE {data.ece:.3f}", xlabel="confidence", xlim=(0, 1.03))
            axes.set(ylim=(0, 1.03), aspect="equal")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("accuracy")
    return figure
