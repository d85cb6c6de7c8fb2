"""Text in figures: fonts for many scripts, and a substitute for characters that none has."""

import functools
import unicodedata

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

MOST_CHARACTERS = 28
# in order of preference; matplotlib ships the first, the others are used where installed
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


@functools.cache
def font_families() -> list[str]:
    """Return the installed `FAMILIES`; a character is drawn in the first one that has it."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return [family for family in FAMILIES if family in installed]


def drawable(text: str, otherwise: str = "") -> str:
    """Return `text` on one line, shortened, with "?" for characters that no font has.

    otherwise: returned instead if not a single character can be drawn.
    """
    line = " ".join(text.split())
    line = "".join(c if _has_glyph(c) else "?" for c in line if unicodedata.category(c) != "Cc")
    if not line.strip("? "):
        return otherwise
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"


@functools.cache
def _fonts() -> list[FT2Font]:
    return [FT2Font(font_manager.findfont(family)) for family in font_families()]


@functools.cache
def _has_glyph(character: str) -> bool:
    return any(font.get_char_index(ord(character)) for font in _fonts())
