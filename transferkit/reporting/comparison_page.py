"""The page of several runs side by side: figures, curves, classes, pictures they disagree on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from transferkit.data.reading import reading_from
from transferkit.evaluation.bootstrap import paired_difference
from transferkit.evaluation.comparison import Comparison, figure_text, option_text
from transferkit.reporting import figures
from transferkit.reporting.charts import Line, line_chart
from transferkit.reporting.gather import Picture, RunData
from transferkit.reporting.page import render
from transferkit.reporting.thumbnails import thumbnail

TONES = (0, 1, 6, 3, 7, 4, 2, 8)  # of the runs in the charts; a ninth run starts again
MOST_PICTURES = 24
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
    """A figure of one run. interval: "" without one. is_best: among the runs."""

    text: str
    interval: str
    is_best: bool


@dataclass(frozen=True)
class ClassRow:
    """A class in every run. recalls: None in runs without it. spread: highest minus lowest."""

    name: str
    recalls: tuple[float | None, ...]
    spread: float


@dataclass(frozen=True)
class Disagreement:
    """A picture that not all runs answer alike. answers: (class, probability) of every run."""

    path: str
    truth: str
    answers: tuple[tuple[str, float], ...]
    image: str


def comparison_page(
    runs: Sequence[RunData], comparison: Comparison, intervals: Sequence[Intervals]
) -> str:
    """Return the page as HTML.

    intervals: per run, figure -> (low, high), see `bootstrap_intervals`; may be empty.
    """
    shared = shared_pictures(runs)
    return render(
        "comparison.html",
        ("sort.js",),
        names=comparison.names,
        tones=[TONES[i % len(TONES)] for i in range(len(runs))],
        folders=[run.folder for run in runs],
        rows={
            LABELS[name]: figure_cells(name, values, intervals)
            for name, values in comparison.figures.items()
        },
        stages=comparison.stages,
        options={key: list(map(option_text, row)) for key, row in comparison.options.items()},
        differences=differences(shared, len(runs)),
        num_shared=len(shared),
        accuracy_curves=curves(runs, comparison.names, "accuracy"),
        loss_curves=curves(runs, comparison.names, "loss"),
        classes=class_rows(runs),
        disagreements=disagreements(runs, shared),
        num_disagreements=sum(_disagree(pictures) for pictures in shared),
    )


def figure_cells(
    name: str, values: Sequence[float | None], intervals: Sequence[Intervals]
) -> list[Cell]:
    """Return a figure of every run as text, the best one marked."""
    different = {value for value in values if value is not None}
    best = None
    if name not in NO_BEST and len(different) > 1:
        best = (min if name in LOWER_IS_BETTER else max)(different)
    cells = []
    for value, run_intervals in zip(values, intervals, strict=True):
        interval = " to ".join(figure_text(name, side) for side in run_intervals.get(name, ()))
        cells.append(Cell(figure_text(name, value), interval, value is not None and value == best))
    return cells


def curves(runs: Sequence[RunData], names: Sequence[str], quantity: str) -> Markup | str:
    """Draw a quantity on validation over all epochs of every run: "loss" or "accuracy"."""
    lines = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        if run.rows:
            values = figures.column(run.rows, f"val_{quantity}")
            lines.append(Line(name, range(1, len(values) + 1), values, TONES[i % len(TONES)]))
    if not lines:
        return ""
    axis = figures.quantity_axis(quantity, [value for line in lines for value in line.y])
    epochs = figures.epoch_axis(max(len(line.x) for line in lines))
    ends = "; ".join(f"{line.name} ends at {axis.form(round(line.y[-1], 3))}" for line in lines)
    return line_chart(f"validation {quantity}: {ends}", lines, epochs, axis)


def shared_pictures(runs: Sequence[RunData]) -> list[tuple[Picture, ...]]:
    """Return the validation pictures that every run has, by path and truth, in the first's order.

    Runs on other data may have files of the same names: their classes must be the same, too.
    """
    if any(set(run.classes) != set(runs[0].classes) for run in runs):
        return []
    tables = [{(p.path, p.truth): p for p in run.pictures} for run in runs]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    return [tuple(table[key] for table in tables) for key in keys]


def differences(
    shared: Sequence[tuple[Picture, ...]], num_runs: int
) -> list[tuple[float, float, float] | None]:
    """Return how much more accurate every run is than the first: (mean, low, high)."""
    if not shared:
        return []
    right = np.array([[p.is_right for p in pictures] for pictures in shared])  # (N, R)
    return [None, *(paired_difference(right[:, 0], right[:, r]) for r in range(1, num_runs))]


def class_rows(runs: Sequence[RunData]) -> list[ClassRow]:
    """Return every class of any run, with its recall in each."""
    tables = [{s.name: s.recall for s in run.scores if s.support} for run in runs]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.classes):
        recalls = tuple(table.get(name) for table in tables)
        defined = [recall for recall in recalls if recall is not None] or [0.0]
        rows.append(ClassRow(name, recalls, max(defined) - min(defined)))
    return rows


def disagreements(
    runs: Sequence[RunData], shared: Sequence[tuple[Picture, ...]]
) -> list[Disagreement]:
    """Return the pictures on which the runs differ with most confidence, with their thumbnails."""
    disputed = [pictures for pictures in shared if _disagree(pictures)]
    disputed.sort(key=lambda pictures: -min(p.probability for p in pictures))
    reading = reading_from(runs[0].description)

    def image(pictures: tuple[Picture, ...]) -> str:
        files = (run.file(picture) for run, picture in zip(runs, pictures, strict=True))
        return thumbnail(next((f for f in files if f is not None and f.is_file()), None), reading)

    return [
        Disagreement(p[0].path, p[0].truth, tuple(each.answers[0] for each in p), image(p))
        for p in disputed[:MOST_PICTURES]
    ]


def _disagree(pictures: tuple[Picture, ...]) -> bool:
    return len({p.answers[0][0] for p in pictures}) > 1
