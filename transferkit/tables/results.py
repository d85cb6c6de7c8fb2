"""What predict, evaluate and inspect print, as tables."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transferkit.console import print_lines, print_styled, print_table

if TYPE_CHECKING:
    from transferkit.data.inspect import Inspection
    from transferkit.evaluation.metrics import Evaluation

SUMMARY_METRICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("balanced", "balanced_accuracy", "{:.1%}".format),
    ("macro F1", "macro_f1", "{:.3f}".format),
    ("top 3", "top_3_accuracy", "{:.1%}".format),
    ("top 5", "top_5_accuracy", "{:.1%}".format),
    ("log loss", "log_loss", "{:.3f}".format),
    ("ECE", "ece", "{:.3f}".format),
    ("AUROC", "auroc", "{:.3f}".format),
)


def prediction_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line per picture: its classes with their probabilities, or why it has none."""
    width = max((sum(key.startswith("label") for key in row) for row in rows), default=1)
    cells = []
    for row in rows:
        names = [f"{row['label']} {row['probability']:.1%}" if row["label"] else row["error"]]
        names += [
            f"{row[f'label_{rank}']} {row[f'probability_{rank}']:.1%}"
            for rank in range(2, width + 1)
            if f"label_{rank}" in row
        ]
        cells.append([row["path"], *names, *[""] * (width - len(names))])
    headings = ["picture", "prediction", *(f"{rank}." for rank in range(2, width + 1))]
    print_table("predictions", headings, cells)


def evaluation_table(evaluation: "Evaluation") -> None:
    """Print the figures of an evaluation and every class with its precision and recall."""
    text = f"accuracy {evaluation.accuracy:.1%} on {evaluation.count:,} pictures"
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
    pairs = [[p.label, p.predicted, p.count] for p in evaluation.most_confused[:5]]
    if pairs:
        print_table("Most confused", ["is", "taken for", "pictures"], pairs)


def inspection_table(found: "Inspection") -> None:
    """Print what a data set holds, and a warning for each thing that matters."""
    splits = [s for s in ("train", "val", "test") if any(c[s] for c in found.counts.values())]
    rows: list[list[Any]] = [
        [name, *(counts[s] for s in splits)] for name, counts in found.counts.items()
    ]
    totals = ["all", *(sum(counts[s] for counts in found.counts.values()) for s in splits)]
    title = f"{found.pictures:,} pictures of {len(rows):,} classes in {found.root}"
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
