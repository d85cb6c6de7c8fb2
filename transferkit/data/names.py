"""Names of files and classes: their order, how they are compared, how they are shown."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that puts "img9" before "img10" and "a" beside "A".

    Numbers are compared by value (and come before letters), the rest without letter case; names
    equal in that way are ordered by their plain text, so the order is total.
    """
    parts = re.findall("([0-9]+)|([^0-9]+)", name.casefold())
    numbers = ((digits.lstrip("0"), other) for digits, other in parts)
    return tuple((1, 0, b) if b else (0, len(a), a) for a, b in numbers), name


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Return the names in natural order; see `natural_key`."""
    return sorted(names, key=natural_key)


def class_name(text: str) -> str:
    """Return a class name in one Unicode form: macOS writes "é" as two characters."""
    return unicodedata.normalize("NFC", text.strip())


def is_valid_text(name: str) -> bool:
    """Whether a file name is valid Unicode, so that it can be written to any result file."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def shown(name: str) -> str:
    """Return a name that is safe to print on one line: odd characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def quoted(name: str) -> str:
    """Return a name as an option that takes several, separated by commas, takes it as one."""
    plain = "," not in name and '"' not in name and name == name.strip()
    return name if plain else '"' + name.replace('"', '""') + '"'


def listed(lines: Sequence[str], limit: int = 5, noun: str = "more") -> str:
    """Return at most `limit` of the lines joined by newlines, and how many there are beyond."""
    more = len(lines) - limit
    return "\n".join([*lines[:limit], *([f"and {more} {noun}"] if more > 0 else [])])


def count(number: int, noun: str, plural: str = "") -> str:
    """Return the number with its noun: "1 picture", "1,200 pictures"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean "rose"?)' for the most similar known name, or nothing."""
    by_folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {shown(by_folded[near[0]])}?)" if near else ""
