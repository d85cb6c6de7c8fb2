"""What people see at the end of a pretraining run."""

from typing import TYPE_CHECKING

from transferkit.console import print_lines, print_styled, print_table
from transferkit.units import duration_text

if TYPE_CHECKING:
    from transferkit.pretraining.summary import PretrainingSummary


def pretraining_table(summary: "PretrainingSummary") -> None:
    """Print the results of a run: metrics of the last epoch, time, and where things are."""
    print_lines([""])
    head = f"{summary.method} of {summary.backbone} on {summary.pictures:,} pictures"
    print_styled(f"{head}, {summary.epochs} epochs in {duration_text(summary.seconds)}", "bold")
    rows = [[name.replace("_", " "), value] for name, value in summary.figures.items()]
    print_table("Last epoch", ["metric", "value"], rows)
    print_lines([""])
    for name, path in {"run folder": summary.run, **summary.files}.items():
        print_lines([f"{name:<12} {path}"])
    print_lines([f"{'next':<12} transferkit finetune DATA --from {summary.run}"])
