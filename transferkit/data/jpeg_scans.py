"""How often a JPEG goes over its pixels: a few bytes each can ask for it thousands of times."""

import re
from typing import BinaryIO

MOST_SCANS = 50
"""Encoders make 1 to about 15; one of 136 bytes over 100 million pixels takes a third of a second.
"""
MOST_BYTES = 500_000_000

_SCAN, _END = 0xDA, 0xD9
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
    count, at = 0, 2
    while count <= most:
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _END:
            return count
        count += found[1][0] == _SCAN
        at = found.end()
        if found[1][0] not in _ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return count
