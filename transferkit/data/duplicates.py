"""Find pictures that are the same: byte for byte, or to the eye."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit.data.decode import DecodeError, decode
from transferkit.data.loader import ahead
from transferkit.data.reading import PLAIN, Reading
from transferkit.events import Progress, Show, silent

# Measured by benchmarks/near_duplicates.py; docs/pictures.md has the figures.
HASH_BITS = (14, 8, 4)
"""Differing bits of 64 at which pictures are compared: the first with few enough pairs."""
MAX_CANDIDATES = 200_000
FEW = 20_000
"""Of more pictures only those whose hashes differ in the fewest bits are compared."""
LEAST_CORRELATION = 0.92
LEAST_EVERYWHERE = 0.88
EMPTY = 0.02
"""Share of a picture's details below which a sixteenth of it is blank and does not count."""
LEAST_UNMOVED = 0.1
MAX_COLOUR_DIFFERENCE = 0.15

_GREY_PX, _DETAIL_PX, _COLOUR_PX, _BLUR_PX = 64, 32, 4, 4.0
_EDGE = slice(2, -2)
_CUT = 0.05
_STEPS = 6
_OFFSETS = [(0.0, 1.0), *((_CUT * at / (_STEPS - 1), 1 - _CUT) for at in range(_STEPS))]
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def _resampling(start: float, share: float) -> np.ndarray:
    """Return the matrix (32, 64) that shrinks a part of 64 values to 32."""
    box = (0, start * _GREY_PX, _GREY_PX, (start + share) * _GREY_PX)
    eye = Image.fromarray(np.eye(_GREY_PX, dtype=np.float32))
    return np.asarray(eye.resize((_GREY_PX, _DETAIL_PX), Image.Resampling.BILINEAR, box=box))


_CROPS = np.stack([_resampling(*crop) for crop in _OFFSETS])  # (7, 32, 64)
_DISTANCES = np.subtract.outer(np.arange(_GREY_PX), np.arange(_GREY_PX)) / _BLUR_PX
_BLUR = np.exp(-(_DISTANCES**2) / 2).astype(np.float32)
_BLUR /= _BLUR.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Look:
    """What of a picture is compared: grey (64, 64) uint8; colours (4, 4, 3), their mean is 1."""

    grey: np.ndarray
    colours: np.ndarray

    def details(self, crops: bool) -> np.ndarray:
        """Return (1, 784), or (37, 784) with 36 crops: grey without shading, of length 1."""
        grey = self.grey.astype(np.float32)
        sharp = grey - _BLUR @ grey @ _BLUR.T
        whole = (_CROPS[:1] @ sharp @ _CROPS[0].T)[:, _EDGE, _EDGE]
        parts = [whole.reshape(1, -1)]
        if crops:
            rows = _CROPS[1:, None] @ sharp @ _CROPS[1:].transpose(0, 2, 1)  # (6, 6, 32, 32)
            parts.append(rows[..., _EDGE, _EDGE].reshape(_STEPS**2, -1))
        found = np.concatenate(parts)
        return _unit(found)


def exact_groups(digests: Sequence[str]) -> list[list[int]]:
    """Return the positions of equal digests together; each group ascending, of two or more."""
    positions: dict[str, list[int]] = {}
    for position, digest in enumerate(digests):
        positions.setdefault(digest, []).append(position)
    return [group for group in positions.values() if len(group) > 1]


def near_groups(
    files: Sequence[Path],
    digests: Sequence[str],
    dhashes: np.ndarray,
    reading: Reading = PLAIN,
    show: Show = silent,
) -> tuple[list[list[int]], str]:
    """Return the positions of pictures that look alike but differ in bytes, linked into groups.

    Candidates have similar hashes; they are alike if their details correlate, one of them whole and
    the other whole or cropped by 5 %, and if their colours agree. Of exact copies only the first is
    compared. Groups hold what is linked by a chain of such pairs.
    files: N. dhashes: (N,) uint64. reading: how the files are read. Also returns what to say where
    not all candidates could be compared, or "".
    """
    first = {digest: position for position, digest in reversed(list(enumerate(digests)))}
    positions = np.array(sorted(first.values()), dtype=np.int64)
    pairs, note = candidates(dhashes[positions])
    needed = [int(positions[number]) for number in sorted({n for pair in pairs for n in pair})]
    looks: dict[int, Look] = {}
    read = ahead(lambda position: look_at(files[position], reading), needed)
    for done, (position, look) in enumerate(zip(needed, read, strict=True), start=1):
        if look is not None:
            looks[position] = look
        show(Progress("pictures with similar hashes", done, len(needed)))
    there = [(int(positions[a]), int(positions[b])) for a, b in pairs]
    return linked(alike(looks, [(a, b) for a, b in there if a in looks and b in looks])), note


def candidates(hashes: np.ndarray) -> tuple[list[tuple[int, int]], str]:
    """Return the pairs to compare of hashes (N,) uint64, sorted, and what to say of a limit."""
    for bits in HASH_BITS if len(hashes) <= FEW else HASH_BITS[-1:]:
        pairs = list(islice(similar_hashes(hashes, bits), MAX_CANDIDATES + 1))
        if len(pairs) <= MAX_CANDIDATES:
            break
    note = ""
    if bits < HASH_BITS[0]:
        note = "near duplicates that are cropped may be missed: "
        if len(pairs) > MAX_CANDIDATES:
            note = "near duplicates may be missed: "
        many = "of so many pictures" if len(hashes) > FEW else "as very many are similar"
        note += f"{many}, only the {len(pairs[:MAX_CANDIDATES]):,} likeliest pairs were compared"
    return sorted(pairs[:MAX_CANDIDATES]), note


def alike(looks: Mapping[int, Look], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those of the pairs that look alike."""

    @lru_cache(800)
    def cropped(position: int) -> np.ndarray:
        return looks[position].details(crops=True)

    whole = {position: look.details(crops=False)[0] for position, look in looks.items()}

    def agree(a: int, b: int) -> bool:
        difference = np.abs(looks[a].colours - looks[b].colours).mean()
        if difference > MAX_COLOUR_DIFFERENCE or whole[a] @ whole[b] < LEAST_UNMOVED:
            return False
        return any(
            everywhere(crop, other) >= LEAST_EVERYWHERE
            for crops, other in ((cropped(a), whole[b]), (cropped(b), whole[a]))
            for crop in crops[crops @ other >= LEAST_CORRELATION]
        )

    return [pair for pair in pairs if agree(*pair)]


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


def everywhere(one: np.ndarray, other: np.ndarray) -> float:
    """Return the median correlation over 16 parts of details (784,), each of length 1.

    Different pictures from under one lamp share its reflections, which outweigh all other details.
    """
    blocks = [d.reshape(4, 7, 4, 7).swapaxes(1, 2).reshape(16, 49) for d in (one, other)]
    filled = np.max([np.linalg.norm(block, axis=1) for block in blocks], axis=0) > EMPTY
    correlations = (_unit(blocks[0]) * _unit(blocks[1])).sum(axis=1)  # (16,)
    return float(np.median(correlations[filled]))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def look_at(file: Path, reading: Reading) -> Look | None:
    """Return what of a picture is compared; None for a file that has gone since it was scanned."""
    try:
        image = decode(file, reading, 2 * _GREY_PX)
    except DecodeError:
        return None
    grey = image.convert("L").resize((_GREY_PX, _GREY_PX), Image.Resampling.BILINEAR)
    small = image.resize((_COLOUR_PX, _COLOUR_PX), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float32)
    return Look(np.asarray(grey), colours / (colours.mean() + 1))


def linked(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
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
