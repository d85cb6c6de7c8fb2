"""The page of a pretraining run: its figures and plots."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferkit.config import Config
from transferkit.evaluation.pretraining_plots import figure_names
from transferkit.reporting.gather import changed_options
from transferkit.reporting.page import render
from transferkit.reporting.thumbnails import data_uri
from transferkit.runs.folder import RunFolder

CAPTIONS = {
    "curves": ("Curves", "Orange: training pictures. Blue: held-out pictures."),
    "feature_map": ("Map of the features", "Pictures of similar features lie together."),
    "filters": ("First layer", "The filters of its units."),
    "reconstructions": ("Reconstructions", "The inputs, and their reconstructions."),
    "samples": ("Samples", "Generated from random latents."),
}
"""Plot -> title and note, in the order of the page; others follow, titled by their name."""


@dataclass(frozen=True)
class Plot:
    """A plot as the page shows it. image: a data URI."""

    title: str
    note: str
    image: str


def pretraining_page(folder: RunFolder, config: Config | None, recipe: str) -> str:
    """Return the page as HTML. Raises UserError when the run has no model yet."""
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
    """List (figure, first value, last value, last value on held-out pictures)."""
    figures = []
    for name in figure_names(rows):
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        held_out = [row[f"val_{name}"] for row in rows if f"val_{name}" in row] or [None]
        if values:
            last = held_out[-1] if isinstance(held_out[-1], int | float) else None
            figures.append((name.replace("_", " "), values[0], values[-1], last))
    return figures


def plots(folder: RunFolder) -> list[Plot]:
    """Return the newest plots of a run, those of `CAPTIONS` first."""
    files = {f.stem: f for f in folder.plots() if not re.fullmatch(r".+-\d+", f.stem)}
    order = [*CAPTIONS, *sorted(files)]
    return [
        Plot(
            *CAPTIONS.get(name, (name.replace("_", " ").capitalize(), "")),
            data_uri(files[name].read_bytes(), "png"),
        )
        for name in sorted(files, key=order.index)
    ]
