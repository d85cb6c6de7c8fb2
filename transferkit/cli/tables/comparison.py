"""What compare prints."""

from pathlib import Path
from typing import Any

from transferkit.console import print_lines, print_table
from transferkit.evaluation.comparison import Comparison, figure_text, option_text
from transferkit.units import duration_text


def comparison_table(comparison: Comparison, plot: Path | None) -> None:
    """Print the results of the runs, stage by stage, then the options that differ."""
    rows: list[list[Any] | None] = [
        [name.replace("_", " "), *(figure_text(name, value) for value in values)]
        for name, values in comparison.figures.items()
    ]
    rows.append(None)
    rows += [[name, *map(_stage, values)] for name, values in comparison.stages.items()]
    print_table("Results", ["", *comparison.names], rows)
    if comparison.options:
        cells = [[key, *map(option_text, values)] for key, values in comparison.options.items()]
        print_table("Options that differ", ["option", *comparison.names], cells)
    else:
        print_lines(["", "all options are the same"])
    if plot is not None:
        print_lines([f"curves: {plot}"])


def _stage(stage: tuple[float, float, int] | None) -> str:
    if stage is None:
        return "–"
    accuracy, seconds, epochs = stage
    return f"{accuracy:.1%} after {epochs} in {duration_text(seconds)}"
