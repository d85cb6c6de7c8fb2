"""Text that figures can draw: fonts for many scripts, and what to do when none has a character."""

import functools
import unicodedata

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

MOST_CHARACTERS = 28
# matplotlib brings the first; of the others, those that the system has are asked in this order
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
    """Return the installed ones of `FAMILIES`; a figure takes each character from the first."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return [family for family in FAMILIES if family in installed]


def drawable(text: str, otherwise: str = "") -> str:
    """Return `text` on one line, shortened, with "?" for characters that no font here can draw.

    otherwise: returned in its place when no character at all can be drawn.
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
