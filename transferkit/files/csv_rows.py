"""Rows as CSV text that a spreadsheet cannot mistake for formulas."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Spreadsheets run a cell that begins with one of these. Source: OWASP, "CSV Injection".
# Apostrophes in front are part of the pattern, so that `unescape_cell` undoes exactly one.
FORMULA_LIKE = re.compile(r"'*[=+\-@\t\r]")


def escape_cell(value: Any) -> Any:
    """Return `value` as it goes into a cell; text that looks like a formula gets an apostrophe.

    Booleans become 0 and 1, None an empty cell. Numbers, and text that is a number, stay.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, str):
        value = str(value)
    if FORMULA_LIKE.match(value) and isinstance(as_number(value), str):
        return "'" + value
    return value


def unescape_cell(text: str) -> str:
    """Undo `escape_cell` on the text of a cell."""
    return text[1:] if text.startswith("'") and FORMULA_LIKE.match(text) else text


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header: the union of their columns in order of first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines: list[list[Any]] = [columns] if columns else []
    lines += [[row.get(column) for column in columns] for row in rows]
    return "".join(f"{csv_line(cells)}\n" for cells in lines)


def from_csv(text: str) -> list[dict[str, str]]:
    """Read back what `to_csv` wrote; empty cells are left out of their row. Raises ValueError."""
    try:
        header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except csv.Error as error:
        raise ValueError(f"it is not a CSV table: {error}") from None
    columns = [unescape_cell(cell) for cell in header]
    return [
        {c: unescape_cell(cell) for c, cell in zip(columns, line, strict=False) if cell != ""}
        for line in lines
    ]


def as_number(text: str) -> int | float | str:
    """Return a cell as the number that it writes, or as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def csv_line(cells: Sequence[Any]) -> str:
    """Return one line of CSV, without its end; it may hold line ends inside quotes."""
    out = io.StringIO()
    # with this line end csv also quotes a lone carriage return; the file itself gets plain \n
    csv.writer(out, lineterminator="\r\n").writerow([escape_cell(cell) for cell in cells])
    return out.getvalue().removesuffix("\r\n")
