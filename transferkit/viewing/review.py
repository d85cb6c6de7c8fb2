"""Decisions on labels that look wrong, each on disk before it is answered."""

import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transferkit.data.corrections import (
    ACTIONS,
    CHANGE,
    KEEP,
    LEAVE_OUT,
    placed,
    read_corrections,
)
from transferkit.errors import UserError, usage_error
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.files.csv_rows import csv_line
from transferkit.finetuning.wrong_labels import WrongLabels
from transferkit.reporting.thumbnails import thumbnail

COLUMNS = ("path", "label", "action", "was")
MOST_BYTES = 10_000
"""Of what the page sends: a number, an action, a class."""
LARGE_PX, SMALL_PX = 640, 200
Row = Mapping[str, str]


class Review:
    """The suspects, by number, and what was decided; threads take turns.

    The file is a table of corrections. What it has already is kept, in any order; decisions of an
    earlier session can be taken back, the last one first. Raises UserError for another file.
    """

    def __init__(self, found: WrongLabels, file: Path) -> None:
        self.found, self.file = found, file
        self._paths = [found.index.paths[each.position] for each in found.suspects]
        self._turns, self._decoding = threading.Lock(), threading.Lock()
        self._rows: dict[str, Row] = {}  # by path, the last decision last
        self._bytes = self._content()
        if self._bytes:
            corrections = read_corrections(file)
            where, _ = placed(corrections, found.index.root, found.index.paths)
            names = {each.line: path for path, each in where.items()}
            for each in corrections:
                path = names.get(each.line, each.path)
                own = {"path": path, "label": each.label, "action": each.action}
                self._rows.pop(path, None)
                self._rows[path] = {**each.cells, **own}
        mine = set(self._paths)
        self._done: list[tuple[str, Row | None]] = [(p, None) for p in self._rows if p in mine]

    def answers(self) -> dict[str, Any]:
        """Return what answers the page, by path."""
        return {
            "/state": lambda body: self.state(),
            "/card": lambda body: self.card(self._number(_read(body))),
            "/decide": lambda body: self.decide(_read(body)),
            "/undo": lambda body: self.undo(),
        }

    def state(self) -> dict[str, Any]:
        """Return every suspect's decision, None where there is none yet."""
        rows = [self._rows.get(path) for path in self._paths]
        decisions = [row and {"action": row["action"], "label": row["label"]} for row in rows]
        counts = Counter(row["action"] for row in rows if row)
        return {
            "decisions": decisions,
            "counts": {action: counts[action] for action in ACTIONS},
            "can_undo": bool(self._done),
        }

    def summary(self) -> str:
        """Say what was decided."""
        counts = self.state()["counts"]
        done = ", ".join(f"{count} {action}" for action, count in counts.items())
        return f"{sum(counts.values())} of {len(self._paths)} decided in {self.file}: {done}"

    def card(self, number: int) -> dict[str, Any]:
        """Return a suspect with its pictures as data URIs, "" for one that cannot be read."""
        index, each = self.found.index, self.found.suspects[number]

        def shown(position: int, side_px: int) -> dict[str, str]:
            file, path = index.file(position), index.paths[position]
            return {"path": path, "picture": thumbnail(file, index.reading, side_px)}

        with self._decoding:
            return {
                **shown(each.position, LARGE_PX),
                "number": number,
                "label": each.label,
                "proposed": each.proposed,
                "sure": each.sure,
                "for_label": [shown(position, SMALL_PX) for position in each.for_label],
                "for_proposed": [shown(position, SMALL_PX) for position in each.for_proposed],
            }

    def decide(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Write a decision down and return the state. wanted: number, action and, to change, label.

        Raises UserError for what is no decision, and where it cannot be written: then it is not
        made.
        """
        number, action = self._number(wanted), wanted.get("action")
        each, label = self.found.suspects[number], wanted.get("label")
        if action not in ACTIONS:
            raise usage_error(f"no such action: it is one of {', '.join(ACTIONS)}")
        if action == CHANGE and label not in self.found.index.classes:
            raise usage_error("no such class")
        if action != CHANGE:
            label = "" if action == LEAVE_OUT else each.label
        elif label == each.label:
            action = KEEP
        path = self._paths[number]
        with self._turns:
            before = self._rows.get(path)
            row = {**(before or {}), "path": path, "label": str(label), "action": str(action)}
            others = {name: other for name, other in self._rows.items() if name != path}
            self._write({**others, path: {**row, "was": each.label}})
            self._done.append((path, before))
            return self.state()

    def undo(self) -> dict[str, Any]:
        """Take the last decision back and return the state, and `undone`, the suspect's number."""
        with self._turns:
            if not self._done:
                raise usage_error("there is nothing to undo")
            path, before = self._done[-1]
            rows = {name: row for name, row in self._rows.items() if name != path}
            self._write(rows if before is None else {**rows, path: before})
            self._done.pop()
            return {**self.state(), "undone": self._paths.index(path)}

    def _number(self, wanted: Mapping[str, Any]) -> int:
        number = wanted.get("number")
        if type(number) is not int or not 0 <= number < len(self._paths):
            raise usage_error("no such picture")
        return number

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise usage_error(f"{self.file} cannot be read", error.strerror or "") from None

    def _write(self, rows: dict[str, Row]) -> None:
        if self._content() != self._bytes:
            what = f"{self.file} has changed since this page was opened"
            raise UserError(f"{what}: start transferkit view again; nothing is lost")
        columns = dict.fromkeys([*COLUMNS, *(name for row in rows.values() for name in row)])
        lines = [csv_line([*columns])]
        lines += [csv_line([row.get(name, "") for name in columns]) for row in rows.values()]
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            write_atomically(self.file, lambda file: file.write(data))
        except OSError as error:
            raise disk_error(self.file.parent, error) from error
        self._rows, self._bytes = rows, data


def _read(body: bytes) -> Mapping[str, Any]:
    """Return what the page sent. Raises UserError where it is no small JSON object."""
    try:
        wanted = json.loads(body) if len(body) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict):
        raise usage_error("this is no request of the page")
    return wanted
