"""Numbers with their units, as people write and read them."""

import re


def count_text(number: float) -> str:
    """Write a count with two or three digits: 830, 10.2 k, 4.7 M, 1.1 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.99995 * size:  # else it would be rounded to 1000.0 of the smaller unit
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"


def bytes_text(number: float) -> str:
    """Write a size: 830 B, 10.2 kB, 4.7 MB (powers of 1000)."""
    text = count_text(number)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration_text(seconds: float) -> str:
    """Write a time: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate_text(rate: float) -> str:
    """Write a learning rate with two digits: 3e-4, 1.5e-3; frozen for 0."""
    if rate == 0:
        return "frozen"
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def parse_bytes(text: str) -> int:
    """Read a size such as 500MB, 8GB or 1.5GiB as bytes. Raises ValueError."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = text.strip().rstrip("abgikmtABGIKMT").strip()
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"must be a size such as 500MB or 8GB, not {text!r}") from None
    if not 0 <= size < 2**63:
        raise ValueError(f"must be a size of 0 or more bytes, not {text!r}")
    return int(size)


def parse_colour(text: str) -> tuple[int, int, int]:
    """Read a colour name or #rrggbb as (red, green, blue), 0..255. Raises ValueError."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError(f"must be a colour such as white or #808080, not {text!r}") from None
    return red, green, blue


def parse_duration(text: str) -> float:
    """Read a time such as 90s, 20m, 1h30m or 1.5h as seconds. Raises ValueError."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    try:
        parts = [float(part or 0) for part in match.groups()] if match else []
    except ValueError:
        parts = []
    seconds = sum(part * size for part, size in zip(parts, (3600, 60, 1), strict=False))
    if not 0 < seconds < 1e8:
        raise ValueError(f"must be a time such as 90s, 20m or 1h30m, not {text!r}")
    return seconds
