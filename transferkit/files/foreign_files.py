"""Files that anybody may have made: only regular ones of a bounded size, and one kind of failure.

A pipe would wait for ever, a device never ends, and parsers raise far more than ValueError on
text that was made to break them.
"""

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transferkit.errors import UserError

MOST_BYTES = {".toml": 1_000_000, ".json": 300_000_000, ".csv": 2_000_000_000}
"""Of a text; a million pictures fit into each of the tables."""
MOST_DOTS = 100  # of a key; the parser takes quadratic time and memory over them
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def path_problem(path: Path | str) -> str:
    """Return why no system call takes a path, "" where they do: its length, its characters."""
    try:
        os.lstat(path)
    except ValueError:  # a NUL, or half of a surrogate pair
        return "holds a character that no path can hold"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "is too long for a path"
    return ""


def require_regular(path: Path, most_bytes: int | None = None) -> None:
    """Raise ValueError unless `path` is (a link to) a regular file; OSError where there is none."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")


def read_text(path: Path) -> str:
    """Return the text of a file. Raises OSError, or ValueError for what is no text."""
    require_regular(path, MOST_BYTES.get(path.suffix, MOST_BYTES[".json"]))
    return path.read_text(encoding="utf-8-sig")


def parse_json(text: str) -> Any:
    """Return what a JSON text says. Raises ValueError."""
    return _parsed(json.loads, text)


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says. Raises ValueError."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    if any(part.count(".") > MOST_DOTS for line in lines for part in re.split("[=,{]", line)):
        raise ValueError("it is nested too deeply")
    return dict(_parsed(tomllib.loads, text))


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def understood(folder: Path | str) -> Iterator[None]:
    """Turn whatever the contents of a run folder make the code inside raise into a UserError.

    For parsing what was read, not for work on it: a bug would look like damage.
    """
    try:
        yield
    except ODD as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{folder} holds files that do not fit together",
            f"{type(error).__name__}: {first[:200]}",
            "the folder was changed or damaged: restore it from a copy, or train again",
        ) from error
