"""The reliability diagram: accuracy against confidence, before and after temperature scaling."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transferkit.evaluation.plots import BLUE, FAINT, ORANGE, styled
from transferkit.evaluation.reliability import ReliabilityBin, calibration_error

Bins = Sequence[ReliabilityBin]


def reliability(before: Bins, after: Bins) -> Figure:
    """Draw accuracy against confidence; the area of a point grows with the pictures in its bin."""
    with styled():
        figure = Figure((8.6, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        most = max((item.count for item in (*before, *after)), default=1)
        cases = (("uncalibrated", before, ORANGE), ("after temperature scaling", after, BLUE))
        for axes, (title, data, colour) in zip(panels, cases, strict=True):
            bins = [item for item in data if item.count]
            axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle="--")
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(x, y, color=colour, linewidth=1)
            axes.scatter(x, y, s=[12 + 150 * b.count / most for b in bins], color=colour, zorder=3)
            axes.set(title=f"{title}: ECE {calibration_error(data):.3f}", xlabel="confidence")
            axes.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("accuracy")
    return figure
