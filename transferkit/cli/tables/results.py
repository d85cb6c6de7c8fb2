"""What predict, evaluate and inspect print, as tables."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transferkit.console import print_lines, print_styled, print_table

if TYPE_CHECKING:
    from transferkit.data.inspect import Inspection
    from transferkit.evaluation.measured import Measured
    from transferkit.evaluation.metrics import Evaluation

MOST_CLASSES = 200  # rows of the table of a data set
SUMMARY_METRICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("balanced", "balanced_accuracy", "{:.1%}".format),
    ("macro F1", "macro_f1", "{:.3f}".format),
    ("top 3", "top_3_accuracy", "{:.1%}".format),
    ("top 5", "top_5_accuracy", "{:.1%}".format),
    ("log loss", "log_loss", "{:.3f}".format),
    ("ECE", "ece", "{:.3f}".format),
    ("AUROC", "auroc", "{:.3f}".format),
)


MARKS = (("unlike", "out of distribution"), ("abstain", "abstained"))


def prediction_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per picture: its classes with their probabilities, or why it has none."""
    width = max((sum(key.startswith("label") for key in row) for row in rows), default=1)
    sampled = any("mutual_information" in row for row in rows)
    has_sets = any("set" in row for row in rows)
    cells = []
    for row in rows:
        names = [_class_cell(row, "") if row["label"] else row["error"]]
        names += [
            _class_cell(row, f"_{rank}") for rank in range(2, width + 1) if row.get(f"label_{rank}")
        ]
        line = [row["path"], *names, *[""] * (width - len(names))]
        line += [_figure(row.get("entropy"))]
        line += [_figure(row.get("mutual_information"))] if sampled else []
        line += [row.get("set") or ""] if has_sets else []
        cells.append([*line, ", ".join(text for name, text in MARKS if row.get(name))])
    headings = ["picture", "prediction", *(f"{rank}." for rank in range(2, width + 1)), "entropy"]
    headings += [*(["mutual information"] if sampled else []), *(["set"] if has_sets else [])]
    if not any(line[-1] for line in cells):
        cells = [line[:-1] for line in cells]
    else:
        headings.append("note")
    print_table("predictions", headings, cells)


def selection_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the pictures that are worth labelling next."""
    lines = [[row["rank"], row["path"], row["score"]] for row in rows]
    print_table("Most worth labelling", ["rank", "picture", "score"], lines)


def measured_table(found: "Measured") -> None:
    """Print an evaluation, then how well its uncertainty predicts errors."""
    evaluation_table(found.evaluation)
    rows = [[f"{item['kept']:.0%}", f"{item['accuracy']:.1%}"] for item in found.kept]
    print_table("Accuracy on the most certain pictures", ["coverage", "accuracy"], rows)
    scores = [
        [name.replace("_", " "), f"{value:.3f}"]
        for name, value in found.wrong_detection.items()
        if value == value
    ]
    if scores:
        print_table("Detection of wrong predictions", ["by", "AUROC"], scores)
    lines = []
    if found.sets is not None:
        sets = found.sets
        lines.append(
            f"sets contain the true class for {sets['coverage']:.1%} of the pictures; "
            f"{sets['size']:.2f} classes on average, {sets['empty']:.1%} empty"
        )
    if found.unlike_auroc == found.unlike_auroc:
        lines.append(
            f"pictures of unknown classes are detected with AUROC {found.unlike_auroc:.3f}"
        )
    print_lines(lines)


def _class_cell(row: dict[str, Any], ending: str) -> str:
    spread = row.get(f"std{ending}")
    around = f" ± {spread:.1%}" if spread is not None else ""
    return f"{row[f'label{ending}']} {row[f'probability{ending}']:.1%}{around}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def evaluation_table(evaluation: "Evaluation") -> None:
    """Print the figures of an evaluation and every class with its precision and recall."""
    text = f"accuracy {evaluation.accuracy:.1%} on {evaluation.count:,} pictures"
    if "accuracy" in evaluation.intervals:
        low, high = evaluation.intervals["accuracy"]
        text += f" (95% interval {low:.1%} to {high:.1%})"
    print_styled(text, "bold")
    figures = evaluation.headline
    shown = [
        f"{name} {form(figures[key])}" for name, key, form in SUMMARY_METRICS if key in figures
    ]
    print_styled(" · ".join(shown), "dim")
    rows = [
        [c.name, *(share_text(v) for v in (c.precision, c.recall, c.f1)), c.support]
        for c in evaluation.per_class
    ]
    print_table("Classes", ["class", "precision", "recall", "F1", "pictures"], rows)
    pairs = [
        [p.label, p.predicted, p.count, p.examples[0] if p.examples else ""]
        for p in evaluation.most_confused[:5]
    ]
    if pairs:
        print_table("Most confused", ["class", "predicted as", "pictures", "example"], pairs)


def inspection_table(found: "Inspection") -> None:
    """Print what a data set holds, and a warning for each thing that matters."""
    splits = [s for s in ("train", "val", "test") if any(c[s] for c in found.counts.values())]
    rows: list[list[Any]] = [
        [name, *(counts[s] for s in splits)] for name, counts in found.counts.items()
    ]
    totals = ["total", *(sum(counts[s] for counts in found.counts.values()) for s in splits)]
    title = f"{found.pictures:,} pictures of {len(rows):,} classes in {found.root}"
    more = len(rows) - MOST_CLASSES
    if more > 0:
        rows = [*rows[:MOST_CLASSES], [f"and {more:,} more"]]
    rows = [[*row, *[None] * (1 + len(splits) - len(row))] for row in rows]
    print_table(title, ["class", *splits], [*rows, None, totals])
    sizes = found.sizes
    lines = [
        f"width {sizes.width[0]} to {sizes.width[2]} px, median {sizes.width[1]:g}; "
        f"height {sizes.height[0]} to {sizes.height[2]} px, median {sizes.height[1]:g}",
        f"largest class {found.imbalance:.1f} times the smallest; "
        f"{len(found.unreadable)} unreadable; {len(found.exact_duplicates)} groups of identical "
        f"files, {len(found.near_duplicates)} of near duplicates",
    ]
    lines += [f"unreadable: {item.path} ({item.reason})" for item in found.unreadable[:10]]
    print_lines(lines)
    for warning in found.warnings:
        print_styled(warning, "yellow", prefix="warning: ")


def share_text(value: float) -> str:
    """Write a share as percent; a dash for NaN."""
    return "-" if value != value else f"{value:.1%}"
