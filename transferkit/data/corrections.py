"""Corrections of labels: a CSV table beside the data set, which itself stays as it is."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transferkit.data.listing import Listing
from transferkit.data.manifest import read_table
from transferkit.data.names import class_name, count, did_you_mean, listed, natural_sorted, shown
from transferkit.data.written_paths import Finder
from transferkit.errors import UserError
from transferkit.files.csv_rows import unescape_cell

KEEP, CHANGE, LEAVE_OUT, UNSURE = ACTIONS = ("keep", "change", "leave out", "unsure")
FORMAT = (
    "a table of corrections is a CSV file with the columns path,label: the right class, or nothing "
    "to leave the picture out"
)
FLAG = "--corrections"


@dataclass(frozen=True)
class Correction:
    """A row. label: the right class, "" leaves the picture out; line: where it stands.

    action: of `ACTIONS`; a table without that column has "change" and "leave out" alone.
    cells: the row as it was read, by column.
    """

    path: str
    label: str
    action: str
    line: int
    cells: Mapping[str, str]

    @property
    def decided(self) -> bool:
        """Whether somebody has said what the label is."""
        return self.action in (KEEP, CHANGE)


def read_corrections(file: Path) -> list[Correction]:
    """Read a table of corrections. Raises UserError that lists every bad line."""
    _, lines, _ = read_table(file, FLAG, FORMAT)
    found: list[Correction] = []
    problems = []
    for line, cells in lines:
        row = {column: unescape_cell(cell) for column, cell in cells.items()}
        path, label = row.get("path", "").strip(), class_name(row.get("label", ""))
        action = row.get("action", "").strip().casefold().replace("_", " ")
        action = action or (CHANGE if label else LEAVE_OUT)
        if not path:
            problems.append(f"line {line}: no path")
        elif action not in ACTIONS:
            problems.append(f"line {line}: unknown action {shown(action)}: {', '.join(ACTIONS)}")
        elif action == CHANGE and not label:
            problems.append(f"line {line}: no label to change to")
        else:
            label = "" if action == LEAVE_OUT else label
            found.append(Correction(path, label, action, line, row))
    _raise(file, problems, FORMAT)
    return found


def placed(
    corrections: Iterable[Correction], root: Path, paths: Iterable[str]
) -> tuple[dict[str, Correction], list[Correction]]:
    """Return the correction of each path of a data set that has one, and those that fit none.

    paths: as an index has them. A path may be written as `Finder.find` understands it.
    """
    full = {os.path.normpath(root / path): path for path in paths}
    finder, found, lost = Finder(root), dict[str, Correction](), []
    for each in corrections:
        path = full.get(os.path.normpath(root / each.path))
        if path is None and (location := finder.find(each.path)):
            path = full.get(os.path.normpath(root / location))
        if path is None:
            lost.append(each)
        else:
            found[path] = each  # of two the later one, which `apply_corrections` refuses
    return found, lost


def apply_corrections(listing: Listing, file: Path, excluded: bool) -> None:
    """Change the labels of a listing, leave pictures out, and say how many.

    excluded: classes were left out of the listing, which may be those of a correction.
    Raises UserError that lists pictures that are not there, classes that the data set has not, and
    pictures with two corrections.
    """
    corrections = read_corrections(file)
    right, lost = placed(corrections, listing.root, [entry.path for entry in listing.entries])
    if excluded:
        lost = [each for each in lost if not os.path.lexists(listing.root / each.path)]
    problems = [f"line {each.line}: no such picture: {shown(each.path)}" for each in lost]
    problems += _contradictions(corrections)
    classes = {entry.label for entry in listing.entries} | listing.classes.keys()
    known = {*classes, *listing.excluded}
    actions, entries = Counter[str](), []
    for entry in listing.entries:
        each = right.get(entry.path)
        label = entry.label if each is None or each.action in (KEEP, UNSURE) else each.label
        if label and label not in known:
            assert each is not None
            hint = did_you_mean(label, classes)
            problems.append(f"line {each.line}: no such class: {shown(label)}{hint}")
        elif not label or label in listing.excluded:
            actions[LEAVE_OUT] += 1
        else:
            actions[CHANGE] += label != entry.label
            entries.append(replace(entry, label=label))
    names = ", ".join(shown(name) for name in natural_sorted(classes)[:20])
    _raise(file, problems, f"classes: {names}; paths are relative to {shown(str(listing.root))}")
    listing.entries = entries
    listing.warnings.append(
        f"{shown(file.name)}: {count(actions[CHANGE], 'label')} changed, "
        f"{count(actions[LEAVE_OUT], 'picture')} left out"
    )


def _contradictions(corrections: Iterable[Correction]) -> list[str]:
    """Return a line for each picture that has two different corrections."""
    first: dict[str, Correction] = {}
    found = []
    for each in corrections:
        earlier = first.setdefault(each.path, each)
        if (earlier.label, earlier.action) != (each.label, each.action):
            found.append(
                f"lines {earlier.line} and {each.line}: two corrections for {shown(each.path)}"
            )
    return found


def _raise(file: Path, problems: list[str], remedy: str) -> None:
    if problems:
        what = f"{shown(str(file))} has {count(len(problems), 'problem')}"
        raise UserError(what, listed(problems, 8), remedy)
