"""What choose prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.console import print_lines, print_styled, print_table
from transferkit.units import duration_text

if TYPE_CHECKING:
    from transferkit.finetuning.backbone_choice import Choice, Row


def choice_table(choice: "Choice", plot: Path) -> None:
    """Print the rows, the best first, and what to do with them."""
    marks = {number: ["front"] for number in choice.front}
    for number, word in ((choice.smallest, "smallest"), (choice.best, "best")):
        marks.setdefault(number, []).insert(0, word)
    cells = [[*_cells(row), ", ".join(marks.get(n, ()))] for n, row in enumerate(choice.rows)]
    headings = ["backbone", "px", "framing", "leave-one-out", "of", "validation", "pictures/s"]
    headings += ["MB", "licence", "ImageNet", "features", ""]
    print_table("Backbones", headings, cells)
    best, smallest = choice.rows[choice.best], choice.rows[choice.smallest]
    print_styled(f"best: {_name(best)}, {best.accuracy:.1%} ± {100 * best.error:.1f}", "bold")
    print_styled(f"smallest within one error of it: {_name(smallest)}", "bold")
    if choice.not_tried:
        print_lines([f"not tried, for the time was over: {'; '.join(choice.not_tried)}"])
    print_lines(
        [
            "a row of fewer pictures fell behind there; front: none is as accurate and faster",
            "pictures/s: through the network on this machine, as busy as it is, without decoding",
            f"plot:   {plot}",
            f"use it: transferkit finetune ... --backbone {smallest.backbone} "
            f"--image-size {smallest.image_size} --crop {smallest.crop}",
            "        or let finetune choose itself: --backbone auto",
        ]
    )


def _name(row: "Row") -> str:
    return f"{row.backbone} at {row.image_size} px, {row.framing}"


def _cells(row: "Row") -> list[str]:
    return [
        row.backbone,
        str(row.image_size),
        row.framing,
        f"{row.accuracy:.1%} ± {100 * row.error:.1f}",
        str(row.pictures),
        "" if row.val_accuracy is None else f"{row.val_accuracy:.1%}",
        f"{row.speed:.1f}",
        f"{row.weights_bytes / 1e6:.0f}",
        row.license,
        "" if row.imagenet is None else f"{row.imagenet:.1f}",
        duration_text(row.features_s),
    ]
