"""The page of a pretraining run: its figures, and every plot that was drawn."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.config import Config
from transferkit.events import NOT_FIGURES
from transferkit.reporting.gather import changed_options
from transferkit.reporting.page import render
from transferkit.runs.folder import RunFolder

CAPTIONS = {
    "curves": ("Curves", "Orange: the pictures learned from. Blue: pictures kept aside."),
    "feature_map": ("Map of the features", "Pictures whose features are alike lie together."),
    "filters": ("First layer", "What its units look for."),
    "reconstructions": ("Reconstructions", "What goes in, and what is drawn of it."),
    "samples": ("Samples", "Drawn from nothing but random numbers."),
}
"""Plot -> its title and what it shows; others are titled by their name."""


@dataclass(frozen=True)
class Plot:
    """A plot as the page shows it. image: a data URI."""

    title: str
    note: str
    image: str


def pretraining_page(folder: RunFolder, config: Config | None, recipe: str) -> str:
    """Return the whole page. Raises UserError when the run has no model yet."""
    description, _ = folder.load_model()
    summary = folder.read_json("summary") or {}
    rows = folder.read_metrics()
    return render(
        "pretraining.html",
        ("sort.js",),
        name=folder.path.resolve().name,
        folder=folder.path,
        d=description,
        summary=summary,
        figures=figure_rows(rows),
        plots=plots(folder),
        changed=changed_options(config) if config else [],
        recipe=recipe,
    )


def figure_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, float | None]]:
    """List (figure, after the first epoch that has it, after the last, on pictures kept aside)."""
    names = [n for row in rows for n in row if n not in NOT_FIGURES and not n.startswith("val_")]
    found = []
    for name in dict.fromkeys(names):
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        aside = [row[f"val_{name}"] for row in rows if f"val_{name}" in row]
        if values:
            last = aside[-1] if aside and isinstance(aside[-1], int | float) else None
            found.append((name.replace("_", " "), values[0], values[-1], last))
    return found


def plots(folder: RunFolder) -> list[Plot]:
    """Return the plots of a run, those that people look at first in front."""
    there = {path.stem: path for path in folder.plots()}
    newest = [name for name in there if not _of_an_epoch(name)]
    order = {name: number for number, name in enumerate(CAPTIONS)}
    newest.sort(key=lambda name: (order.get(name, len(order)), name))
    return [Plot(*caption(name), png_uri(there[name])) for name in newest]


def caption(name: str) -> tuple[str, str]:
    """Return a plot's title and note."""
    return CAPTIONS.get(name, (name.replace("_", " ").capitalize(), ""))


def png_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _of_an_epoch(name: str) -> bool:
    head, _, number = name.rpartition("-")
    return bool(head) and number.isdigit()
