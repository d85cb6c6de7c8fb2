"""Lists and tables as other systems write them: text, lines, and the files that are meant."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from transferkit.data.formats import picture_kind
from transferkit.data.names import is_valid_text
from transferkit.data.tar_members import archive_of

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_NEWLINE = re.compile(r"\r\n|\r|\n")
_UTF_8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_QUOTES = "\"'“”„"
_DRIVE = re.compile(r"[A-Za-z]:/")


def read_text(data: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 as Excel and PowerShell write them, without its mark.

    Raises UnicodeDecodeError.
    """
    coding = next((coding for mark, coding in _MARKS if data.startswith(mark)), "utf-8")
    if coding == "utf-8":  # Latin text in UTF-16 has a zero in every other byte
        start = data[:200]
        halves = ((start[1::2], "utf-16-le"), (start[::2], "utf-16-be"))
        coding = next((name for half, name in halves if half.count(0) > 0.4 * len(start)), coding)
    return data.decode(coding, errors if coding.startswith("utf-8") else "strict")


def western_text(data: bytes) -> str:
    """Decode what is not UTF-8 as Windows-1252, the tables of older Excels in Western languages.

    Raises UnicodeDecodeError, also where a part of it is UTF-8: then the rest is damaged.
    """
    other = _UTF_8.search(data) or b"\0" in data
    return read_text(data) if other else data.decode("cp1252")


def text_lines(text: str) -> list[str]:
    """Split a text at the line ends of any system, or, where there are any, at NUL characters."""
    return text.split("\0") if "\0" in text else _NEWLINE.split(text)


def listed_files(lines: Iterable[str]) -> list[Path]:
    """Return the files that a list means, one in each line; lines that mean none as they are.

    lines: text, or a standard input, which is read as bytes: its encoding is the list's own.
    """
    if (raw := getattr(lines, "buffer", None)) is not None:
        text = read_text(raw.read(), "surrogateescape")
    else:
        text = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
    find = Finder(Path()).find
    named = [line for line in text_lines(text) if line.strip("\ufeff \t")]
    return [find(line) or Path(line.strip("\ufeff")) for line in named]


class Finder:
    """Finds the file that a written path means; keeps the names of the folders it has read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, written: str) -> Path | None:
        """Return the file that is meant, its path starting as the written one does, or None.

        As written, or with slashes for backslashes, without quotes, decoded from a URL; else the
        only one of that name but for letter case, the form of its accents, or a missing suffix;
        else, for an absolute path of another machine, by as much of its end as leads to a file.
        """
        try:
            spelled = list(_spellings(written))
            exact = (Path(text) for text in spelled if self._is_file(self.root / text))
            if file := next(exact, None):
                return file
            last = spelled[-1]
            is_absolute = last.startswith("/") or _DRIVE.match(last)  # on some machine
            parts = last.split("/") if is_absolute else []
            ends = ("/".join(parts[first:]) for first in range(1, len(parts) - 1))
            return next(filter(None, map(self._alike, [*spelled, *filter(None, ends)])), None)
        except (OSError, ValueError):  # an embedded NUL, a name that is too long
            return None

    def _is_file(self, path: Path) -> bool:
        there = os.path.lexists(path) and not os.path.isdir(path)
        return there or (path.suffix != "" and archive_of(path) is not None)

    def _alike(self, text: str) -> Path | None:
        """Return the only file of that name but for what `find` names."""
        *folders, name = Path(text).parts or ("",)
        place = Path()
        for part in folders:
            if part != ".." and not os.path.isdir(self.root / place / part):
                alike = self._called(place, part)
                part = alike[0] if len(alike) == 1 else part
            place /= part
        for key in (name, f"{name}\0"):  # then without a suffix
            files = [n for n in self._called(place, key) if self._is_file(self.root / place / n)]
            if files:
                return place / files[0] if len(files) == 1 else None
        return None

    def _called(self, folder: Path, name: str) -> list[str]:
        """Return the names in a folder that are alike; with a NUL behind it, those of pictures."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            place = self.root / folder
            for entry in os.listdir(place) if os.path.isdir(place) else ():
                names.setdefault(_key(entry), []).append(entry)
                if picture_kind(entry) is not None:
                    names.setdefault(_key(f"{os.path.splitext(entry)[0]}\0"), []).append(entry)
            self._names[folder] = names
        return self._names[folder].get(_key(name), [])


def _key(name: str) -> str:
    return normalize("NFC", name).casefold()


def _spellings(written: str) -> Iterator[str]:
    """Yield what a written path may mean, likeliest first; the last one has slashes only."""
    bare = written.strip("\ufeff\0 \t\r\n").strip(_QUOTES).strip()
    yield from (written, bare)
    bare = bare.replace("\\", "/")
    yield bare
    if not is_valid_text(bare):  # a line of a list that is not UTF-8, see `listed_files`
        with suppress(UnicodeError):
            yield western_text(bare.encode(errors="surrogateescape"))
    if "%" in bare or bare.lower().startswith("file:"):
        yield re.sub("^file:/*", "/", unquote(bare), flags=re.IGNORECASE)
