"""Read a manifest: a CSV table `path,label[,split]`; every problem in it is reported at once."""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transferkit.data.listing import SPLITS, Entry, Listing
from transferkit.data.names import class_name, did_you_mean, listed, shown
from transferkit.data.split_columns import TABLE_SPLITS, split_reader
from transferkit.data.tar_members import archive_of
from transferkit.data.written_paths import Finder, read_text, text_lines, western_text
from transferkit.errors import UserError, usage_error

_FORMAT = "a manifest is a CSV file with the columns path,label or path,label,split"

_DIFFER = ("label", "split", "group")

_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)


@dataclass
class _Rows:
    """Rows read so far, by path; problems with their line numbers."""

    finder: Finder
    allow_outside: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    repeated: int = 0


def read_manifest(
    manifest: Path,
    root: Path | None = None,
    exclude: Sequence[str] = (),
    allow_outside: bool = False,
    to_train: bool = True,
    group_column: str = "",
) -> Listing:
    """List the pictures of a manifest; other columns are ignored, but see `split_reader`.

    manifest: UTF-8, UTF-16 or Windows-1252 text, separated by commas, semicolons, tabs or bars.
        Paths are understood as `Finder.find` says.
    root: the folder that relative paths start from; None: the manifest's own.
    exclude: class names to leave out. allow_outside: paths may lead out of the root; else somebody
    else's table could have any file of this machine read.
    to_train: a row of train is needed where others have a split. group_column: in lower case.
    Raises UserError that lists every bad line: a missing value, an unknown split, a file that
    does not exist or lies outside, a path with two labels or two splits.
    """
    base = Path(os.path.abspath(root if root is not None else manifest.parent))
    listing = Listing(root=base)
    rows = _Rows(Finder(base), allow_outside)
    columns, lines, listing.warnings = read_table(manifest, "--manifest", _FORMAT)
    split_of, notes = split_reader(columns, [row for _, row in lines])
    listing.warnings += notes
    listing.columns = tuple(columns)
    for line, row in lines:
        group = row.get(group_column, "").strip()
        _read_row(rows, line, {**row, "split": split_of(row)}, group)
    _check_splits(rows, to_train)
    _raise_problems(manifest, rows)
    for entry in rows.entries.values():
        if entry.label in exclude:
            listing.excluded.add(entry.label)
            continue
        listing.entries.append(entry)
        if entry.split in ("", "train"):
            listing.classes[entry.label] = ""
    if not any(entry.split == "val" for entry in listing.entries):
        listing.lacks_val = any(entry.split for entry in listing.entries)
        listing.entries = [_undecided(entry) for entry in listing.entries]
    if rows.repeated:
        listing.warnings.append(f"{rows.repeated} rows of the manifest repeat an earlier row")
    return listing


def _undecided(entry: Entry) -> Entry:
    return replace(entry, split="") if entry.split == "train" else entry


def read_table(
    file: Path, flag: str, form: str
) -> tuple[list[str], list[tuple[int, dict[str, str]]], list[str]]:
    """Return the columns of a CSV table with path and label, its lines that are not blank, each
    with its number and its cells, and warnings.

    flag: that named the file; form: what such a table looks like. Raises UserError.
    """
    text, warnings = _text(file, flag, form)
    return *_table(file, text, form), warnings


def _table(
    manifest: Path, text: str, form: str
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns, and the number and the cells of each line that is not blank."""
    name = shown(str(manifest))
    first = text_lines(text)[0]
    stated = _SEPARATOR.fullmatch(first.strip('"'))  # Excel's
    skipped = 1 if stated else 0
    lines = text[len(first) :].lstrip("\r\n") if stated else text
    delimiter = stated[1] if stated else max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        columns = [column.strip().casefold() for column in next(reader, [])]
        missing = [column for column in ("path", "label") if column not in columns]
        if missing:
            has = f"its first line has: {shown(', '.join(columns)) or 'nothing'}"
            hints = "".join(did_you_mean(column, columns) for column in missing)
            raise UserError(f"{name} has no column {' and '.join(missing)}{hints}", has, form)
        doubled = [column for column in ("path", "label", "split") if columns.count(column) > 1]
        if doubled:
            raise UserError(f"{name} has the column {doubled[0]} twice", remedy=form)
        for row in reader:
            if any(cell.strip() for cell in row):
                # Rows may be shorter than the header; what is missing reads as empty.
                rows.append((reader.line_num + skipped, dict(zip(columns, row, strict=False))))
    except csv.Error as error:
        where = f"line {reader.line_num + skipped}: {error}"
        raise UserError(f"{name} is not a CSV table", where, form) from error
    return columns, rows


def _text(manifest: Path, flag: str, form: str) -> tuple[str, list[str]]:
    """Return the text of a table, and a warning where its encoding had to be guessed."""
    name, warnings = shown(str(manifest)), []
    if manifest.is_dir():
        raise usage_error(f"{flag} {name} is a folder", remedy=form)
    if manifest.exists() and not manifest.is_file():
        raise usage_error(f"{flag} {name} is not a regular file", remedy=form)
    try:
        data = manifest.read_bytes()
        try:
            text = read_text(data)
        except UnicodeDecodeError:
            text = western_text(data)
            words = (word for word in text.split() if not word.isascii())
            odd = shown(next(words, "a blank")[:40])
            warnings.append(
                f"{name} is not UTF-8 and was read as Windows-1252 ({odd}); if that is wrong, save "
                "it as UTF-8"
            )
    except FileNotFoundError as error:
        raise usage_error(f"{flag} {name} does not exist", remedy=form) from error
    except OSError as error:
        raise usage_error(f"{flag} {name} cannot be read", str(error.strerror)) from error
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise UserError(
            f"{name} is not UTF-8 text", f"byte {error.start} is not", remedy
        ) from error
    if not text.strip():
        raise UserError(f"{name} is empty", remedy=form)
    return text, warnings


def _read_row(rows: _Rows, line: int, row: dict[str, str], group: str) -> None:
    """Add one row, or what is wrong with it."""
    path, label, split = (row.get(column, "").strip() for column in ("path", "label", "split"))
    label = class_name(label)
    missing = [column for column, value in (("path", path), ("label", label)) if not value]
    if missing:
        rows.problems.append(f"line {line}: no {' and no '.join(missing)}")
        return
    canonical = TABLE_SPLITS.get(split.casefold(), "")
    if split and not canonical:
        hint = did_you_mean(split, SPLITS)
        rows.problems.append(f"line {line}: unknown split {shown(split)}{hint}")
        return
    location = _located(rows.finder, path)
    if location is None:
        rows.problems.append(f"line {line}: no such file: {shown(path)}")
        return
    if os.path.isabs(location) and not rows.allow_outside:
        root = shown(str(rows.finder.root))
        rows.problems.append(f"line {line}: outside of {root} (--allow-outside): {shown(path)}")
        return
    entry = Entry(location, label, canonical, group=group)
    earlier = rows.entries.setdefault(location, entry)
    first_line = rows.lines.setdefault(location, line)
    if earlier == entry:
        rows.repeated += first_line != line
        return
    pairs = {name: (getattr(earlier, name), getattr(entry, name)) for name in _DIFFER}
    differ = next(name for name, (one, other) in pairs.items() if one != other)
    values = pairs[differ]
    rows.problems.append(
        f"lines {first_line} and {line}: two {differ}s for {shown(path)}: "
        + " and ".join(shown(value) or "none" for value in values)
    )


def _located(finder: Finder, path: str) -> str | None:
    """Return the path as the index keeps it (relative where it lies below root), or None."""
    location = finder.find(path)
    if location is None or archive_of(finder.root / location):
        return None
    full = Path(os.path.normpath(finder.root / location))
    return (full.relative_to(finder.root) if full.is_relative_to(finder.root) else full).as_posix()


def _check_splits(rows: _Rows, to_train: bool) -> None:
    """Note rows without a split where others have one, and splits without a training part."""
    by_split: dict[str, list[str]] = {}
    for path, entry in rows.entries.items():
        by_split.setdefault(entry.split, []).append(path)
    if "" in by_split and len(by_split) > 1:
        first = rows.lines[by_split[""][0]]
        number = len(by_split[""])
        rows.problems.append(f"line {first}: no split, though others have one ({number} such rows)")
    elif to_train and by_split and "" not in by_split and "train" not in by_split:
        rows.problems.append(f"no row has the split train (found: {', '.join(by_split)})")


def _raise_problems(manifest: Path, rows: _Rows) -> None:
    name = shown(str(manifest))
    if rows.problems:
        number = len(rows.problems)
        what = f"{name} has {number} {'problem' if number == 1 else 'problems'}"
        remedy = f"correct the file; paths are relative to {shown(str(rows.finder.root))}"
        raise UserError(what, listed(rows.problems, 8), remedy)
    if not rows.entries:
        raise UserError(f"{name} lists no pictures", remedy=_FORMAT)
