"""What export prints."""

from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.console import print_lines, print_table
from transferkit.units import bytes_text

if TYPE_CHECKING:
    from transferkit.exporting.compare import Comparison


def export_table(path: Path, result: "Comparison") -> None:
    """Print the exported model beside the original."""
    r = result
    rows = []
    if r.accuracy_before is not None and r.accuracy_after is not None:
        rows.append(["accuracy", f"{r.accuracy_before:.1%}", f"{r.accuracy_after:.1%}"])
    rows += [
        ["size", bytes_text(r.bytes_before), bytes_text(r.bytes_after)],
        ["pictures/s", f"{r.speed_before:.0f}", f"{r.speed_after:.0f}"],
        ["ms for one picture", f"{r.latency_before:.1f}", f"{r.latency_after:.1f}"],
        ["same prediction", "", f"{r.agreement:.1%}"],
        ["largest logit difference", "", f"{r.largest_difference:.1e}"],
    ]
    if r.sparsity:
        rows.insert(-3, ["pruned weights", "", f"{r.sparsity:.1%}"])
    title = f"Compared on {r.pictures:,} pictures" if r.pictures else "Compared on noise"
    print_table(title, ["", "torch", "exported"], rows)
    speed, size = r.speed_after / r.speed_before, r.bytes_after / r.bytes_before
    print_lines(
        [f"{speed:.1f} times the speed (network only, batches of 32), {size:.2f} × the size"]
    )
    print_lines([f"exported: {path}", f"use it:   transferkit predict {path} PICTURES..."])
