"""What labels prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.console import print_lines, print_styled, print_table

if TYPE_CHECKING:
    from transferkit.finetuning.wrong_labels import WrongLabels

MOST_SHOWN = 25  # suspects on the screen


def labels_table(found: "WrongLabels", output: Path | None) -> None:
    """Print the suspects, the pairs of classes, and how many labels are probably wrong."""
    rows = found.rows()
    cells = [
        [
            *(row["path"], row["label"], f"{row['proposed']} {row['probability']:.0%}"),
            *("".join(row[near][:1]) for near in ("near_label", "near_proposed")),
        ]
        for row in rows[:MOST_SHOWN]
    ]
    headings = ["picture", "label", "probably", "nearest of the label", "nearest of the other"]
    if cells:
        print_table(f"Suspects, the first {len(cells)} of {len(rows)}", headings, cells)
    if pairs := found.pairs():
        lines = [[p["label"], p["proposed"], f"{p['pictures']:.1f}"] for p in pairs]
        print_table("Pairs of classes", ["label", "probably", "pictures"], lines)
    share = found.estimate.number / max(1, found.pictures)
    text = f"probably {found.estimate.text} of {found.pictures:,} labels are wrong ({share:.1%})"
    print_styled(text, "bold")
    others = f"confident learning would say {found.estimate.confident:,.0f}"
    print_lines([f"{others}, which may count mistakes of the model, too"])
    written = [f"all {len(rows)} suspects: {output}"] if output else []
    print_lines([*written, "nothing is changed; decide each in the browser: view DATA --labels"])
