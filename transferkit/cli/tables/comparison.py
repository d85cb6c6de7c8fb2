"""What compare prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.config import Stage
from transferkit.console import print_lines, print_table
from transferkit.units import duration_text

if TYPE_CHECKING:
    from transferkit.evaluation.comparison import Comparison

SHARES = ("accuracy", "balanced_accuracy")


def comparison_table(found: "Comparison", plot: Path | None) -> None:
    """Print the results of the runs, stage by stage, then the options that differ."""
    rows: list[list[Any] | None] = [
        [name.replace("_", " "), *(_figure(name, value) for value in values)]
        for name, values in found.figures.items()
    ]
    rows.append(None)
    rows += [[name, *map(_stage, values)] for name, values in found.stages.items()]
    print_table("Results", ["", *found.names], rows)
    if found.options:
        cells = [[key, *map(_text, values)] for key, values in found.options.items()]
        print_table("Options that differ", ["option", *found.names], cells)
    else:
        print_lines(["", "all options are the same"])
    if plot is not None:
        print_lines([f"curves: {plot}"])


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "epochs":
        return f"{value:.0f}"
    if name == "seconds":
        return duration_text(value)
    return f"{value:.1%}" if name in SHARES else f"{value:.3f}"


def _stage(stage: tuple[float, float, int] | None) -> str:
    if stage is None:
        return ""
    accuracy, seconds, epochs = stage
    return f"{accuracy:.1%} after {epochs} in {duration_text(seconds)}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(p.text if isinstance(p, Stage) else str(p) for p in value) or "-"
    return "-" if value is None else str(value)
