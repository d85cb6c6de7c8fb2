"""What inspect prints of what more pictures would bring, and of splits that differ."""

from typing import TYPE_CHECKING

from transferkit.console import print_lines, print_styled, print_table

if TYPE_CHECKING:
    from transferkit.finetuning.outlook import Outlook

MOST_CLASSES = 30
WORDS = {"gains": "more would help", "none": "enough", "unclear": "cannot tell"}


def outlook_lines(outlook: "Outlook") -> None:
    """Print the learning curve, the gain of twice the pictures per class, and a shift."""
    curve = outlook.curve
    if curve is None:
        print_lines(["too few training pictures for a learning curve"])
    else:
        points = zip(curve.pictures, curve.errors, strict=True)
        print_table("Learning curve", ["pictures", "error"], [[n, f"{e:.1%}"] for n, e in points])
        found = sorted(curve.classes.items(), key=lambda item: -item[1][1].gain)
        rows = [
            [name, number, gain.text.removeprefix("about "), WORDS[gain.verdict]]
            for name, (number, gain) in found[:MOST_CLASSES]
        ]
        if rows:
            headings = ["class", "pictures", "with twice as many (95 %)", ""]
            print_table("Twice the pictures of one class", headings, rows)
        print_lines(curve.sentences())
    print_lines([each.text for each in outlook.grouped])
    if outlook.warning:
        print_styled(outlook.warning, "yellow", prefix="warning: ")
    elif outlook.shift is not None:
        auc, p_value = outlook.shift.auc, outlook.shift.p_value
        text = "validation pictures do not look different from the training ones"
        print_lines([f"{text} (AUC {auc:.2f}, p = {p_value:.2f})"])
