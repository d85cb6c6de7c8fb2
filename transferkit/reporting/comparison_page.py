"""The page of several runs side by side: figures, curves, classes, pictures they disagree on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from transferkit.config import Stage
from transferkit.data.reading import reading_from
from transferkit.evaluation.bootstrap import paired_difference
from transferkit.evaluation.comparison import Comparison
from transferkit.reporting import figures
from transferkit.reporting.charts import Axis, Line, axis_over, line_chart
from transferkit.reporting.gather import Picture, RunData
from transferkit.reporting.page import render, share_text
from transferkit.reporting.thumbnails import thumbnail
from transferkit.units import duration_text

TONES = (0, 1, 6, 3, 7, 4, 2, 8)  # of the runs in the charts; a ninth run starts again
MOST_PICTURES = 24
SHARES = ("accuracy", "balanced_accuracy")
LOWER_IS_BETTER = ("log_loss", "ece", "seconds")
NO_BEST = ("epochs", "seconds")

LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "calibration error (ECE)",
    "seconds": "time",
    "epochs": "epochs",
}

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Cell:
    """A figure of one run. interval: "" where none is known. is_best: among the runs."""

    text: str
    interval: str
    is_best: bool


@dataclass(frozen=True)
class ClassRow:
    """A class in every run. found: its share of recognised pictures, None where it is not known.

    spread: the highest minus the lowest.
    """

    name: str
    found: tuple[float | None, ...]
    spread: float


@dataclass(frozen=True)
class Disagreement:
    """A picture that not all runs answer alike. answers: (class, probability) of every run."""

    path: str
    truth: str
    answers: tuple[tuple[str, float], ...]
    image: str


def comparison_page(
    runs: Sequence[RunData], found: Comparison, intervals: Sequence[Intervals]
) -> str:
    """Return the whole page.

    intervals: per run, figure -> (low, high), see `bootstrap_intervals`; {} where not known.
    """
    shared = shared_pictures(runs)
    return render(
        "comparison.html",
        ("sort.js",),
        names=found.names,
        tones=[TONES[i % len(TONES)] for i in range(len(runs))],
        folders=[run.folder for run in runs],
        rows={
            LABELS[name]: figure_cells(name, values, intervals)
            for name, values in found.figures.items()
        },
        stages=found.stages,
        options={k: [option_text(v) for v in values] for k, values in found.options.items()},
        differences=differences(shared, len(runs)),
        num_shared=len(shared),
        accuracy_curves=curves(runs, found.names, "accuracy"),
        loss_curves=curves(runs, found.names, "loss"),
        classes=class_rows(runs),
        disagreements=disagreements(runs, shared),
        num_disagreements=sum(_disagree(pictures) for pictures in shared),
    )


def figure_cells(
    name: str, values: Sequence[float | None], intervals: Sequence[Intervals]
) -> list[Cell]:
    """Return a figure of every run as text, the best one marked."""
    known = [v for v in values if v is not None]
    best = None
    if name not in NO_BEST and len(set(known)) > 1:
        best = (min if name in LOWER_IS_BETTER else max)(known)
    cells = []
    for value, own in zip(values, intervals, strict=True):
        sides = own.get(name, ())
        interval = " to ".join(figure_text(name, side) for side in sides)
        cells.append(Cell(figure_text(name, value), interval, value is not None and value == best))
    return cells


def figure_text(name: str, value: float | None) -> str:
    """Write a figure the way its kind is read."""
    if value is None:
        return "–"
    if name == "epochs":
        return f"{value:.0f}"
    if name == "seconds":
        return duration_text(value)
    return share_text(value) if name in SHARES else f"{value:.3f}"


def option_text(value: Any) -> str:
    """Write an option's value; stages as `--stages` takes them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(option_text, value)) or "–"
    if isinstance(value, Stage):
        return value.text
    return "–" if value is None else str(value)


def curves(runs: Sequence[RunData], names: Sequence[str], quantity: str) -> Markup | str:
    """Draw a quantity on validation over all epochs of every run: "loss" or "accuracy"."""
    lines = [
        Line(
            name,
            list(range(1, len(run.rows) + 1)),
            figures.column(run.rows, f"val_{quantity}"),
            TONES[i % len(TONES)],
        )
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
        if run.rows
    ]
    if not lines:
        return ""
    is_share = quantity == "accuracy"
    form = figures.percent if is_share else "{:g}".format
    every = [value for line in lines for value in line.y]
    axis = axis_over(quantity, every, form, 0.1, (0.0, 1.0 if is_share else np.inf))
    longest = max(len(line.x) for line in lines)
    epochs = Axis("epoch", 0.5, longest + 0.5, "{:.0f}".format, whole=True)
    told = "; ".join(f"{line.name} ends at {form(round(line.y[-1], 3))}" for line in lines)
    return line_chart(f"validation {quantity}: {told}", lines, epochs, axis)


def shared_pictures(runs: Sequence[RunData]) -> list[tuple[Picture, ...]]:
    """Return the validation pictures that every run has, by path and truth, in the first's order.

    Runs on other data may have files of the same names: their classes must be the same, too.
    """
    if any(set(run.classes) != set(runs[0].classes) for run in runs):
        return []
    tables = [{(p.path, p.truth): p for p in run.pictures} for run in runs]
    return [
        tuple(table[key] for table in tables)
        for key in tables[0]
        if all(key in table for table in tables)
    ]


def differences(
    shared: Sequence[tuple[Picture, ...]], num_runs: int
) -> list[tuple[float, float, float] | None]:
    """Return how much more accurate every run is than the first: (mean, low, high)."""
    if not shared:
        return []
    right = np.array([[p.is_right for p in pictures] for pictures in shared])  # (N, R)
    return [None, *(paired_difference(right[:, 0], right[:, r]) for r in range(1, num_runs))]


def class_rows(runs: Sequence[RunData]) -> list[ClassRow]:
    """Return every class that any run knows, with the share of its pictures found by each."""
    tables = [{s.name: s.recall for s in run.scores if s.support} for run in runs]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.classes):
        found = tuple(table.get(name) for table in tables)
        known = [value for value in found if value is not None]
        rows.append(ClassRow(name, found, max(known) - min(known) if len(known) > 1 else 0.0))
    return rows


def disagreements(
    runs: Sequence[RunData], shared: Sequence[tuple[Picture, ...]]
) -> list[Disagreement]:
    """Return the pictures on which the runs differ most surely, with their thumbnails."""
    found = [pictures for pictures in shared if _disagree(pictures)]
    found.sort(key=lambda pictures: -min(p.probability for p in pictures))
    reading = reading_from(runs[0].description)

    def image(pictures: tuple[Picture, ...]) -> str:
        files: list[Path] = [
            file
            for run, picture in zip(runs, pictures, strict=True)
            if (file := run.file(picture)) is not None and file.is_file()
        ]
        return thumbnail(files[0], reading) if files else ""

    return [
        Disagreement(p[0].path, p[0].truth, tuple(each.answers[0] for each in p), image(p))
        for p in found[:MOST_PICTURES]
    ]


def _disagree(pictures: tuple[Picture, ...]) -> bool:
    return len({p.answers[0][0] for p in pictures}) > 1
