"""The page of one run: every figure, chart and thumbnail that its template shows."""

from dataclasses import dataclass
from typing import Any

from transferkit.data.addresses import address_of
from transferkit.data.reading import reading_from
from transferkit.evaluation.comparison import figure_text
from transferkit.reporting import figures
from transferkit.reporting.charts import timeline
from transferkit.reporting.gather import Picture, RunData, changed_options, wilson_interval
from transferkit.reporting.page import render
from transferkit.reporting.thumbnails import data_uri, thumbnail
from transferkit.runs.folder import PRETRAINING
from transferkit.units import duration_text

MOST_PICTURES = 12  # of each kind
MOST_CELLS = 26  # classes of a confusion matrix shown as a table; larger ones are drawn
SECONDARY = (
    ("balanced", "balanced_accuracy"),
    ("macro F1", "macro_f1"),
    ("top 3", "top_3_accuracy"),
    ("top 5", "top_5_accuracy"),
    ("log loss", "log_loss"),
)


@dataclass(frozen=True)
class Shown:
    """A picture as the page shows it. image: a data URI, "" where the file is gone."""

    picture: Picture
    image: str


def run_page(run: RunData) -> str:
    """Return the page as HTML."""
    return render(
        "run.html",
        ("sort.js",),
        run=run,
        name=run.folder.resolve().name,
        **headline(run),
        **training(run),
        **mistakes(run),
        **certainty(run),
        **outlook(run),
        **pretraining(run),
        **repetition(run),
    )


def headline(run: RunData) -> dict[str, Any]:
    """Return the figures at the top, and the counts of the data set."""
    metrics = run.summary["metrics"]
    accuracy, count = metrics["accuracy"], run.summary["val_pictures"]
    counts = run.data.get("counts", {})
    splits = [s for s in ("train", "val", "test") if any(c.get(s) for c in counts.values())]
    return {
        "accuracy": accuracy,
        "interval": wilson_interval(accuracy, count) if count else None,
        "metrics": [
            (label, figure_text(key, metrics[key]))
            for label, key in SECONDARY
            if metrics.get(key) is not None
        ],
        "counts": counts,
        "splits": splits,
        "largest": max((sum(c.values()) for c in counts.values()), default=1),
        "warnings": run.data.get("warnings", []),
        "left_out": run.data.get("left_out", []),
    }


def training(run: RunData) -> dict[str, Any]:
    """Return the stages and the curves."""
    rows, parts = run.rows, figures.stage_timeline(run.summary)
    return {
        "stages": run.summary["stages"],
        "part_legend": [(f"{name} {duration_text(s)}", tone) for name, s, tone in parts],
        "time_bar": timeline(parts),
        "time_rows": figures.time_rows(run.summary),
        "loss": figures.curve(rows, "loss") if rows else "",
        "accuracy_curve": figures.curve(rows, "accuracy") if rows else "",
        "bands": [band.name for band in figures.stage_bands(rows)],
        "rates": figures.by_block(rows, "lr", "learning rate"),
        "rate_blocks": figures.drawn_blocks(rows, "lr"),
        "gradients": figures.by_block(rows, "grad_norm", "gradient norm"),
        "gradient_blocks": figures.drawn_blocks(rows, "grad_norm"),
    }


def mistakes(run: RunData) -> dict[str, Any]:
    """Return the confusion matrix, and the pictures worth a look."""
    reading = reading_from(run.description)

    def shown(pictures: list[Picture]) -> list[Shown]:
        return [Shown(p, thumbnail(run.file(p), reading)) for p in pictures]

    small = len(run.classes) <= MOST_CELLS
    return {
        "cells": {(i, j): (shade, text) for i, j, shade, text in figures.confusion_shades(run)},
        "large_confusion": "" if small else figures.large_confusion(run),
        "confused": run.confused,
        "confident_errors": shown(run.confident_errors(MOST_PICTURES)),
        "least_certain": shown(run.least_certain(MOST_PICTURES)),
    }


def certainty(run: RunData) -> dict[str, Any]:
    """Return the calibration; empty for a run without one."""
    calibration = run.calibration
    if calibration is None:
        return {"reliability": ""}
    before, after = calibration["before"]["ece"], calibration["after"]["ece"]
    sampled = calibration.get("sampled")  # none in runs of older releases
    note = ""
    if sampled:
        own, same = sampled["after"]["ece"], sampled["before"]["ece"]
        note = f" Mean of {sampled['samples']} samples of MC dropout: ECE {same:.3f} with the same"
        note += f" temperature, {own:.3f} with its own, which predict uses."
    return {
        "reliability": figures.reliability_chart(calibration),
        "reliability_legend": [
            ("calibrated", figures.VALIDATION),
            ("as trained", figures.TRAINING),
            *([("MC dropout", figures.SAMPLED)] if sampled else []),
            ("perfect", figures.QUIET),
        ],
        "reliability_note": "On the dashed line the model is calibrated, below it overconfident. "
        f"Expected calibration error (ECE) {before:.3f} as trained, {after:.3f} with "
        f"temperature {calibration['temperature']:.2f}, fitted on "
        f"{calibration.get('judged_on', 'validation')} ({calibration['pictures']:,} pictures)."
        f"{note}",
        "coverage": figures.coverage_chart(calibration),
    }


def outlook(run: RunData) -> dict[str, Any]:
    """Return what more pictures would bring, and how splits differ; empty where it is not known."""
    curve, shift = (run.learning.get(name) or {} for name in ("learning_curve", "shift"))
    gains = sorted(curve.get("classes", {}).items(), key=lambda item: -item[1]["gain"])
    return {
        "learning": figures.learning_chart(curve) if curve else "",
        "learning_legend": [
            ("measured", figures.TRAINING),
            ("power law", figures.VALIDATION),
            ("its 95 % band", figures.QUIET),
        ],
        "suspects": suspects(run),
        "learning_notes": curve.get("sentences", []),
        "class_gains": gains,
        "shift": shift.get("warning", ""),
    }


def pretraining(run: RunData) -> dict[str, Any]:
    """Return what the pretraining that the run began with has learned; empty without one."""
    first = run.summary.get("pretraining")
    if not first:
        return {"first": None}
    plots = run.folder / PRETRAINING / "plots"
    files = [plots / f"{name}.png" for name in ("curves", "filters", "feature_map")]
    images = {
        f.stem.replace("_", " "): data_uri(f.read_bytes(), "png") for f in files if f.is_file()
    }
    return {"first": first, "first_plots": images}


def suspects(run: RunData) -> list[Shown]:
    """Return the pictures whose labels look wrong the most, with what they may be instead."""
    reading = reading_from(run.description)
    rows = (run.learning.get("suspects") or {}).get("rows", [])
    found = []
    for row in rows:
        answers = ((row["proposed"], row["probability"]), (row["label"], row["probability_label"]))
        picture = Picture(row["path"], row["label"], answers)
        found.append(Shown(picture, thumbnail(run.file(picture), reading)))
    return found


def repetition(run: RunData) -> dict[str, Any]:
    """Return what it takes to repeat the run."""
    data = run.config.data if run.config else None
    source = data and (data.path or data.manifest)
    return {
        "changed": changed_options(run.config) if run.config else [],
        "source": address_of(source) or str(source) if source else "DATA",
        "versions": run.description.get("versions", {}),
    }
