"""Rows and arrays that are written while a long job goes on, and never lost when it is killed.

A job writes into NAME.partial and renames it at its end, so NAME is always whole. What a killed job
left in NAME.partial ends at most with one torn row, which is cut off when the job goes on.
"""

import contextlib
import csv
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from transferkit.errors import UserError, usage_error
from transferkit.files.csv_rows import csv_line, unescape_cell
from transferkit.files.strict_json import strict_json

SUFFIXES = (".csv", ".jsonl", ".parquet")
SAFE: Any = {"errors": "backslashreplace"}


class RowFile(Protocol):
    """Where rows go. done: paths of the rows that were there already."""

    done: set[str]

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; they last when this returns."""

    def append(self, part: Path) -> None:
        """Add the rows of another file of this kind and of the same columns."""

    def close(self, whole: bool) -> None:
        """Stop; `whole` puts the file in its place, else it stays partial."""


def open_rows(path: Path, columns: Sequence[str], go_on: bool) -> RowFile:
    """Start, or go on with, a file of rows in the format that its suffix names.

    go_on: keep the rows of an earlier job. Raises UserError where its columns are others, or where
    the format cannot be added to.
    """
    if path.suffix.lower() == ".parquet":
        if go_on:
            raise usage_error(
                "--skip-existing cannot go on with a .parquet file",
                "its index is written last",
                "write .csv or .jsonl",
            )
        return ParquetFile(path, columns)
    return TextFile(path, columns, go_on)


class TextFile:
    """CSV or JSON lines, appended batch by batch."""

    def __init__(self, path: Path, columns: Sequence[str], go_on: bool) -> None:
        self.path, self.columns = path, list(columns)
        self.is_csv = path.suffix.lower() == ".csv"
        self.partial = partial_path(path)
        self.done: set[str] = set()
        if go_on:
            self._take_over()
        self._file = self.partial.open("ab" if go_on else "wb")
        if self.is_csv and not self._file.tell():
            self._append(csv_line(self.columns) + "\n")

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows in one write and wait for the disk."""
        if self.is_csv:
            lines = [csv_line([row.get(name) for name in self.columns]) for row in rows]
        else:
            lines = [strict_json(row) for row in rows]
        self._append("".join(f"{line}\n" for line in lines))

    def append(self, part: Path) -> None:
        """Add the bytes of another file; a CSV's begin after its header."""
        with part.open("rb") as file:
            file.seek(len(f"{csv_line(self.columns)}\n".encode(**SAFE)) if self.is_csv else 0)
            shutil.copyfileobj(file, self._file)
        self._append("")

    def close(self, whole: bool) -> None:
        """Close; when the job is `whole`, put the file in its place."""
        self._file.close()
        if whole:
            os.replace(self.partial, self.path)

    def _append(self, text: str) -> None:
        self._file.write(text.encode(**SAFE))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take_over(self) -> None:
        """Start from the partial file, or from a finished one, without a torn last row."""
        if not self.partial.exists() and self.path.exists():
            # a copy, so that the finished file stays whole whatever happens
            self.partial.write_bytes(self.path.read_bytes())
        if not self.partial.exists():
            return
        with self.partial.open("r+b") as file:
            file.truncate(end_of_whole_rows(file, quoted=self.is_csv))
        with self.partial.open(newline="", encoding="utf-8", errors="replace") as lines:
            if self.is_csv:
                table = csv.reader(lines)
                header = [unescape_cell(cell) for cell in next(table, [])]
                self._require_same(header)
                self.done = {unescape_cell(row[0]) for row in table if row}
            else:
                for line in lines:
                    row = json.loads(line)
                    self._require_same(list(row))
                    self.done.add(row["path"])

    def _require_same(self, header: list[str]) -> None:
        if header and header != self.columns:
            raise UserError(
                f"cannot go on with {self.partial}: its columns are others",
                f"there: {', '.join(header)}\nnow: {', '.join(self.columns)}",
                "use the options of the job that began it, or leave --skip-existing out",
            )


class ParquetFile:
    """Parquet through pyarrow, a row group per batch."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"{path.name}: writing Parquet needs the package pyarrow",
                remedy="pip install 'transferkit[parquet]', or write .csv or .jsonl",
            ) from None
        kinds = {"unlike": pyarrow.bool_(), "abstain": pyarrow.bool_(), "set_size": pyarrow.int32()}
        text = ("path", "label", "error", "set")
        self._schema = pyarrow.schema(
            (name, pyarrow.string())
            if name in text or name.startswith("label_")
            else (name, kinds.get(name, pyarrow.float64()))
            for name in columns
        )
        self.path, self.partial = path, partial_path(path)
        self.done: set[str] = set()
        self._table = pyarrow.Table
        self._open = pyarrow.parquet.ParquetFile
        self._writer = pyarrow.parquet.ParquetWriter(self.partial, self._schema)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a row group."""
        self._writer.write_table(self._table.from_pylist(list(rows), schema=self._schema))

    def append(self, part: Path) -> None:
        """Add the row groups of another file."""
        with self._open(part) as file:
            for number in range(file.num_row_groups):
                self._writer.write_table(file.read_row_group(number))

    def close(self, whole: bool) -> None:
        """Write the index; a job that is not `whole` leaves nothing."""
        self._writer.close()
        if whole:
            os.replace(self.partial, self.path)
        else:
            with contextlib.suppress(OSError):
                self.partial.unlink()


class ArrayFile:
    """One float32 array (N, ...) in a .safetensors file, written row by row, in order.

    A picture that could not be read has NaN. metadata: text that the file carries.
    """

    def __init__(
        self, path: Path, name: str, shape: Sequence[int], metadata: Mapping[str, str]
    ) -> None:
        self.path, self.partial = path, partial_path(path)
        self._row_shape = tuple(shape[1:])
        size = 4 * int(np.prod(shape))
        head = {
            "__metadata__": dict(metadata),
            name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
        }
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
        self._file: BinaryIO = self.partial.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, row: np.ndarray | None) -> None:
        """Add the next row; None for a picture that could not be read."""
        values = np.full(self._row_shape, np.nan) if row is None else row
        self._file.write(np.ascontiguousarray(values, dtype="<f4").tobytes())

    def append(self, part: Path) -> None:
        """Add the rows of another such file."""
        with part.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            file.seek(8 + length)
            shutil.copyfileobj(file, self._file)

    def close(self, whole: bool) -> None:
        """Put the file in its place when it is `whole`, else remove it."""
        self._file.close()
        if whole:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink()


def partial_path(path: Path) -> Path:
    """Return where a job writes until it is done."""
    return path.with_name(f"{path.name}.partial")


def end_of_whole_rows(file: BinaryIO, quoted: bool) -> int:
    """Return the position after the last line end; quoted: one that is not inside quotes."""
    file.seek(0)
    end = position = quotes = 0
    for line in file:  # lines end with \n; the last one may be torn
        position += len(line)
        quotes += line.count(b'"') if quoted else 0
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end


def part_path(path: Path, number: int, count: int) -> Path:
    """Return where process `number` (from 0) of `count` writes its part of a file."""
    return path.with_name(f"{path.stem}.part-{number + 1}-of-{count}{path.suffix}")
