"""Runs side by side, as data: the results of each, and the options that differ."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from transferkit.config import Config, Stage, option_fields
from transferkit.units import duration_text

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every tuple has one entry per run, None where a run has none.

    names: as short as they can be and still unique. figures: name -> value on validation; also
    seconds and epochs of the whole run. stages: name -> (accuracy, seconds, epochs). options: key
    -> value, only keys whose values differ.
    """

    names: tuple[str, ...]
    figures: dict[str, tuple[float | None, ...]]
    stages: dict[str, tuple[tuple[float, float, int] | None, ...]]
    options: dict[str, tuple[Any, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return asdict(self)


def figure_text(name: str, value: float | None) -> str:
    """Write a figure of a run: shares in percent, times in their units; a dash for None or NaN."""
    if value is None or value != value:
        return "–"
    if name == "seconds":
        return duration_text(value)
    if name == "epochs":
        return f"{value:.0f}"
    return f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3f}"


def option_text(value: Any) -> str:
    """Write an option's value, stages as `--stages` takes them; a dash for None or nothing."""
    if isinstance(value, tuple):
        return ", ".join(map(option_text, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Stage):
        return value.text
    return "–" if value is None else str(value)


def short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the folders' names, with as many parents as it takes to make them unique."""
    paths_parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, paths_parts)) + 1):
        names = tuple("/".join(parts[-length:]) for parts in paths_parts)
        if len(set(names)) == len(names):
            return names
    return tuple(map(str, paths))


def outcome(summaries: Sequence[dict[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    """Return every figure that any of the runs has, and each run's seconds and epochs."""
    figures: dict[str, tuple[float | None, ...]] = {
        name: tuple(summary["metrics"].get(name) for summary in summaries) for name in FIGURES
    }
    figures["seconds"] = tuple(summary["seconds"] for summary in summaries)
    figures["epochs"] = tuple(sum(s["epochs"] for s in summary["stages"]) for summary in summaries)
    return {name: values for name, values in figures.items() if set(values) != {None}}


def stages_of(
    summaries: Sequence[dict[str, Any]],
) -> dict[str, tuple[tuple[float, float, int] | None, ...]]:
    """Return the stages of all runs, in order; repeated names within a run are numbered."""
    tables = []
    for summary in summaries:
        table: dict[str, tuple[float, float, int]] = {}
        for stage in summary["stages"]:
            name, count = stage["name"], 1
            while name in table:
                count += 1
                name = f"{stage['name']} ({count})"
            if stage["epochs"]:
                table[name] = (stage["best_accuracy"], stage["seconds"], stage["epochs"])
        tables.append(table)
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table.get(name) for table in tables) for name in names}


def differing(configs: Sequence[Config]) -> dict[str, tuple[Any, ...]]:
    """Return the options, the data and the stages whose values are not the same in all runs."""
    keys = ["data.path", *(item.key for item in option_fields())]
    every = {key: tuple(map(attrgetter(key), configs)) for key in keys}
    every["stages"] = tuple(config.stages for config in configs)
    return {key: values for key, values in every.items() if any(v != values[0] for v in values)}
