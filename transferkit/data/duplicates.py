"""Find pictures that are the same: byte for byte, or to the eye."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit.data.decode import DecodeError, decode
from transferkit.data.reading import PLAIN, Reading

# Measured on photographs and on rendered icons: re-encoded at quality 40, halved or brightened by
# 5 %, 92 to 100 % of copies stay within both limits; no two of 900 different photographs do.
MAX_HASH_BITS = 4
MAX_COLOUR_DIFFERENCE = 8.0
MAX_CANDIDATES = 200_000

_THUMBNAIL_PX = 16
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def exact_groups(digests: Sequence[str]) -> list[list[int]]:
    """Return the positions of equal digests together; each group ascending, of two or more."""
    positions: dict[str, list[int]] = {}
    for position, digest in enumerate(digests):
        positions.setdefault(digest, []).append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_groups(
    files: Sequence[Path], digests: Sequence[str], dhashes: np.ndarray, reading: Reading = PLAIN
) -> tuple[list[list[int]], bool]:
    """Return the positions of pictures that look alike but differ in bytes, linked into groups.

    Two pictures look alike if their hashes differ in at most `MAX_HASH_BITS` of 64 bits and their
    16 × 16 colour thumbnails by at most `MAX_COLOUR_DIFFERENCE` of 255 on average. Of exact copies
    only the first is compared. Groups hold what is linked by a chain of such pairs.
    files: N. dhashes: (N,) uint64. reading: how the files are read. Also returns whether the search
    was cut short, which happens where more than `MAX_CANDIDATES` pairs have similar hashes
    (thousands of blank pictures).
    """
    first = {digest: position for position, digest in reversed(list(enumerate(digests)))}
    positions = np.array(sorted(first.values()), dtype=np.int64)
    thumbnails: dict[int, np.ndarray | None] = {}
    alike, compared = [], 0
    for one, other in similar_hashes(dhashes[positions], MAX_HASH_BITS):
        if compared == MAX_CANDIDATES:
            break
        compared += 1
        pair = int(positions[one]), int(positions[other])
        for position in pair:
            if position not in thumbnails:
                thumbnails[position] = _thumbnail(files[position], reading)
        a, b = (thumbnails[position] for position in pair)
        if a is not None and b is not None and np.abs(a - b).mean() <= MAX_COLOUR_DIFFERENCE:
            alike.append(pair)
    return _linked(alike), compared == MAX_CANDIDATES


def similar_hashes(hashes: np.ndarray, max_bits: int) -> Iterator[tuple[int, int]]:
    """Yield all pairs of positions, the smaller first, whose hashes differ in at most `max_bits`.

    hashes: (N,) uint64. Hashes that differ in `max_bits` bits agree in at least one of
    `max_bits` + 1 bands, so only those that share a band are compared.
    """
    edges = [round(64 * band / (max_bits + 1)) for band in range(max_bits + 2)]
    for band, (start, stop) in enumerate(pairwise(edges)):
        keys = _bits(hashes, start, stop)
        order = np.argsort(keys, kind="stable")
        bounds = np.flatnonzero(np.diff(keys[order])) + 1
        for run in np.split(order, bounds):
            for at, position in enumerate(run[:-1]):
                later = run[at + 1 :]
                differing = hashes[later] ^ hashes[position]
                for match in np.flatnonzero(_bit_count(differing) <= max_bits):
                    # A pair that agrees in an earlier band was yielded there.
                    bands = (_bits(differing[match], *edges[b : b + 2]) for b in range(band))
                    if all(bands):
                        yield int(position), int(later[match])


def _bits(hashes: np.ndarray, start: int, stop: int) -> np.ndarray:
    mask = np.uint64((1 << (stop - start)) - 1)
    return (hashes >> np.uint64(start)) & mask


def _bit_count(hashes: np.ndarray) -> np.ndarray:
    # numpy.bitwise_count needs NumPy 2.
    octets = np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)
    return _BITS_OF_BYTE[octets].sum(axis=1)


def _thumbnail(file: Path, reading: Reading) -> np.ndarray | None:
    """Return (16, 16, 3) int16 colours; None for a file that has gone since it was scanned."""
    try:
        image = decode(file, reading, 4 * _THUMBNAIL_PX)
    except DecodeError:
        return None
    small = image.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.int16)


def _linked(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of the pairs, each ascending, by their first position."""
    group_of: dict[int, list[int]] = {}
    for one, other in pairs:
        a, b = group_of.setdefault(one, [one]), group_of.setdefault(other, [other])
        if a is not b:
            a, b = (a, b) if len(a) >= len(b) else (b, a)
            a.extend(b)
            group_of.update((position, a) for position in b)
    groups = {id(group): sorted(group) for group in group_of.values()}
    return sorted(groups.values())
