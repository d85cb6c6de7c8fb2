"""Rows and arrays that are written while a long job goes on, and never lost when it is killed.

A job writes into NAME.partial and renames it at its end, so NAME is always whole. What a killed job
left in NAME.partial ends at most with one torn row, which is cut off when the job goes on.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import struct
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transferkit.errors import UserError, usage_error
from transferkit.files.atomic_write import open_draft, open_regular, open_to_add, write_atomically
from transferkit.files.csv_rows import csv_line, unescape_cell
from transferkit.files.foreign_files import ODD, parse_json, read_text
from transferkit.files.strict_json import strict_json

SUFFIXES = (".csv", ".jsonl", ".parquet")
MOST_HEAD_BYTES = 100_000_000  # of the columns, or of the paths beside an array
LAST = ("error", "near_proposed")
"""The last columns of rows that are written here."""
SAFE: Any = {"errors": "backslashreplace"}
Provenance = Mapping[str, Any]
""""by": the models and options that rows depend on; "folder": of `folder_of`."""


def open_rows(
    path: Path, columns: Sequence[str], go_on: bool, made: Provenance | None = None
) -> "RowFile":
    """Start, or go on with, a file of rows in the format that its suffix names.

    go_on: keep the rows of an earlier job, but for those with an error. made: stored in
    NAME.made.json. Raises UserError where columns, models or options differ from those of the
    earlier job, or where the format cannot be added to.
    """
    if path.suffix.lower() == ".parquet":
        if go_on:
            what = "--skip-existing cannot go on with a .parquet file"
            raise usage_error(what, "its index is written last", "write .csv or .jsonl")
        return ParquetFile(path, columns)
    return TextFile(path, columns, go_on, made)


class TextFile:
    """CSV or JSON lines, appended batch by batch. done: `picture_key` of the rows there were."""

    def __init__(
        self, path: Path, columns: Sequence[str], go_on: bool, made: Provenance | None
    ) -> None:
        self.path, self.columns = path, list(columns)
        self.is_csv = path.suffix.lower() == ".csv"
        self.partial = partial_path(path)
        self.done: set[str] = set()
        self._made = made
        source = self.partial if os.path.lexists(self.partial) else path
        if go_on and source.exists():
            with os.fdopen(open_regular(source, os.O_RDONLY), "rb") as rows:
                self._made = made and self._same_provenance(source, made)
                self._record()
                write_atomically(self.partial, lambda file: self._take_over(rows, file))
            self._file = open_to_add(self.partial)
        else:
            self.partial.unlink(missing_ok=True)
            self._record()  # first: no rows are there without it
            self._file = open_draft(self.partial)
            self._append(self._header())

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows in one write and wait for the disk."""
        if self.is_csv:
            lines = [csv_line([row.get(name) for name in self.columns]) for row in rows]
        else:
            lines = [strict_json(row) for row in rows]
        self._append("".join(f"{line}\n" for line in lines).encode(**SAFE))

    def append(self, part: Path) -> None:
        """Add the bytes of another file; a CSV's begin after its header."""
        with part.open("rb") as file:
            file.seek(len(self._header()))
            shutil.copyfileobj(file, self._file)
        self._append(b"")

    def close(self, whole: bool) -> None:
        """Close; when the job is `whole`, put the file in its place."""
        self._file.close()
        if not whole:
            return
        if self._made:
            os.replace(provenance_path(self.partial), provenance_path(self.path))
        else:
            provenance_path(self.path).unlink(missing_ok=True)
        os.replace(self.partial, self.path)

    def _header(self) -> bytes:
        return f"{csv_line(self.columns)}\n".encode(**SAFE) if self.is_csv else b""

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _record(self) -> None:
        if self._made:
            data = strict_json(self._made, indent=2).encode(**SAFE)
            write_atomically(provenance_path(self.partial), lambda file: file.write(data))

    def _same_provenance(self, source: Path, made: Provenance) -> Provenance:
        """Return the provenance of `source` and of new rows. Raises UserError if they differ."""
        record = provenance_path(source)
        record = record if record.exists() else provenance_path(self.path)
        what = f"cannot go on with {source}"
        remedy = "name another --output, or leave --skip-existing out: all are predicted again"
        try:
            earlier = parse_json(read_text(record))
            there, now = (json.loads(strict_json(each["by"])) for each in (earlier, made))
            folder = str(earlier["folder"])
        except (OSError, *ODD):
            what += ": nothing says which model and options made it"
            raise UserError(what, f"that would lie in {record}", remedy) from None
        if others := [name for name in {**there, **now} if there.get(name) != now.get(name)]:
            where = "\n".join(f"{n}: there {there.get(n)}, now {now.get(n)}" for n in others)
            raise UserError(f"{what}: another model or other options made it", where, remedy)
        if folder and made["folder"] not in ("", folder):
            what += ": the names in it are seen from another folder"
            remedy = f"go on from {folder}, or give pictures by their whole paths"
            raise UserError(what, f"there {folder}, now {made['folder']}", remedy)
        return {**made, "folder": folder or made["folder"]}

    def _take_over(self, rows: BinaryIO, kept: BinaryIO) -> None:
        """Copy the rows of an earlier job: no torn last one, none of a picture with an error."""
        kept.write(self._header())
        records = whole_records(rows, quoted=self.is_csv)
        if self.is_csv:
            self._require_same(_cells(next(records, self._header())))
        folder = str(self._made["folder"]) if self._made else ""
        for record in records:
            if self.is_csv:
                row = dict(zip(self.columns, _cells(record), strict=False))
            else:
                row = _object(record)
                self._require_same(list(row))
            if not row.get("error"):
                kept.write(record)
                self.done.add(picture_key(row["path"], folder))

    def _require_same(self, header: list[str]) -> None:
        if header != self.columns:
            raise UserError(
                f"cannot go on with {self.partial}: its columns are others",
                f"there: {', '.join(header)}\nnow: {', '.join(self.columns)}",
                "use the options of the job that started it, or leave --skip-existing out",
            )


class ParquetFile:
    """Parquet through pyarrow, a row group per batch."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            what = f"{path.name}: writing Parquet needs the package pyarrow"
            remedy = "pip install 'transferkit[parquet]', or write .csv or .jsonl"
            raise UserError(what, remedy=remedy) from None
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
        self._file = open_draft(self.partial)
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._schema)

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
        self._file.close()
        _finish(self.partial, self.path, whole)


RowFile = TextFile | ParquetFile


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
        self._file = open_draft(self.partial)
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
        _finish(self.partial, self.path, whole)


def _finish(partial: Path, path: Path, whole: bool) -> None:
    """Put a whole file in its place; remove another."""
    if whole:
        os.replace(partial, path)
    else:
        with contextlib.suppress(OSError):
            partial.unlink()


def partial_path(path: Path) -> Path:
    """Return where a job writes until it is done."""
    return path.with_name(f"{path.name}.partial")


def provenance_path(path: Path) -> Path:
    """Return where the provenance of the rows of a file is stored."""
    return path.with_name(f"{path.name}.made.json")


def content_digest(paths: Iterable[Path]) -> str:
    """Return 32 hex digits of the contents of files, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return digest.hexdigest()


def provenance(
    models: Iterable[Iterable[Path]], options: Mapping[str, Any], files: Iterable[Path]
) -> Provenance:
    """Return what rows depend on, for `open_rows`. models: the files of each. files: pictures."""
    by = {"models": [content_digest(each) for each in models], **options}
    return {"by": by, "folder": folder_of(files)}


def folder_of(files: Iterable[Path]) -> str:
    """Return the folder from which relative names of pictures are seen, "" where all are whole."""
    return "" if all(file.is_absolute() for file in files) else os.getcwd()


def picture_key(path: Path | str, folder: str = "") -> str:
    """Return one name of a picture, however it is given. folder: where relative paths begin."""
    whole = os.path.join(folder, path)
    with contextlib.suppress(ValueError):  # a NUL: there is no such file
        whole = os.path.realpath(whole)
    return whole.encode(**SAFE).decode()


def not_in(done: Container[str], files: Iterable[Path]) -> list[Path]:
    """Return the files that have no row yet. done: of a `RowFile`."""
    return [file for file in files if not done or picture_key(file) not in done]


def whole_records(file: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """Yield a file's rows as they lie there, without a torn last one.

    quoted: a row ends where a line ends that is not inside quotes.
    """
    record: list[bytes] = []
    quotes = 0
    for line in file:  # lines end with \n; the last one may be torn
        record.append(line)
        quotes += line.count(b'"') if quoted else 0
        if line.endswith(b"\n") and quotes % 2 == 0:
            yield b"".join(record)
            record = []


def _cells(record: bytes) -> list[str]:
    text = io.StringIO(record.decode(errors="replace"), newline="")
    return [unescape_cell(cell) for cell in next(csv.reader(text), [])]


def _object(record: bytes) -> dict[str, Any]:
    try:
        row = parse_json(record.decode(errors="replace"))
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}


def require_replaceable(paths: Iterable[Path | None]) -> None:
    """Raise a usage error for a file that would be overwritten and is not of the kind written here.

    A link is no such file: it would be replaced, and what it leads to stays.
    """
    for path in filter(None, paths):
        if path.is_symlink() or not path.is_file() or not path.stat().st_size:
            continue
        if not is_ours(path):
            what = f"{path} is there already, and transferkit did not write it"
            remedy = "name another file, or move this one away"
            raise usage_error(what, "it would be overwritten", remedy)


def is_ours(path: Path) -> bool:
    """Whether a file has the columns, or holds the one array, of what is written here."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            names = list(pyarrow.parquet.read_schema(path).names)
        else:
            with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
                if suffix == ".safetensors":
                    (length,) = struct.unpack("<Q", file.read(8))
                    head = parse_json(file.read(min(length, MOST_HEAD_BYTES)).decode())
                    return set(head) - {"__metadata__"} in ({"samples"}, {"features"})
                first = file.readline(MOST_HEAD_BYTES)
            names = _cells(first) if suffix == ".csv" else list(_object(first))
    except (OSError, ImportError, struct.error, csv.Error, *ODD):
        return False
    return "path" in names and names[-1] in LAST


def part_path(path: Path, number: int, count: int) -> Path:
    """Return where process `number` (from 0) of `count` writes its part of a file."""
    return path.with_name(f"{path.stem}.part-{number + 1}-of-{count}{path.suffix}")
