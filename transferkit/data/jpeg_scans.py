"""How often a JPEG goes over its pixels: a few bytes each can ask for it thousands of times."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

MOST_SCANS = 50
"""Encoders make 1 to about 15; one of 136 bytes over 100 million pixels takes a third of a second.
"""
MOST_BYTES = 500_000_000

_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def count_scans(file: BinaryIO, most: int = MOST_SCANS) -> int:
    """Return the number of scans of the first picture in a JPEG, or `most` + 1 if there are more.

    The position in the file stays as it is. Markers inside of segments (a thumbnail's, say) and
    behind the end of the picture do not count. Source: ITU-T T.81, annex B.
    """
    before = file.tell()
    file.seek(0)
    data = file.read(MOST_BYTES)
    file.seek(before)
    scans = (marker for marker, _ in _segments(data) if marker == _SCAN)
    return sum(1 for _ in islice(scans, most + 1))


def all_scans_there(data: bytes) -> bool:
    """Whether the scans that begin in a JPEG hold every coefficient of every component.

    Source: ITU-T T.81, annex B.2.3 and G.1: a scan's components, its first and last coefficient,
    and the bit that it ends with.
    """
    components: set[int] = set()
    complete: set[tuple[int, int]] = set()
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) > 5:
            components = set(body[6::3])
        elif marker == _SCAN and len(body) > 5:
            named, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
            complete |= {(c, k) for c in named for k in range(first, last + 1) if not bits & 15}
    return bool(components) and complete >= {(c, k) for c in components for k in range(64)}


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the markers of the first picture, and the contents of their segments."""
    at = 2
    while (marker := _MARKER.search(data, at)) is not None and marker[1][0] != _END:
        at = end = marker.end()
        if marker[1][0] not in _ALONE:
            end += int.from_bytes(data[at : at + 2], "big")
        yield marker[1][0], data[at + 2 : end]
        at = end
