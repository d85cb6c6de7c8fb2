"""Groups: pictures of one occasion, animal or machine, which a split must not tear apart."""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from transferkit.data.duplicates import linked
from transferkit.data.formats import readable_formats
from transferkit.data.listing import Entry
from transferkit.data.names import count, natural_sorted, shown
from transferkit.data.opened import opened
from transferkit.errors import UserError, usage_error
from transferkit.units import parse_duration

SIMILAR = "similar"
WAYS = (
    "a column of the manifest; folder, or folder:2 for the second one of the path; a pattern for "
    "file names with one part in parentheses, 'site(\\d+)'; time:30s; similar"
)
NAMES = (r"^(.+)[-_ ]", r"^([^-_ ]+)[-_ ]", r"(\d+)\D*$")
"""What of a file name may tell a group: up to its last part, its first part, its last number."""
BURST_S = 30
LEAST_GROUPED, MOST_IN_ONE, LEAST_PURE = 0.5, 0.2, 0.9
"""A way to group is proposed where so many pictures have others in their group, at least; where no
group has more of all, and where so many pictures are of their group's main class."""
_EXIF, _TAKEN, _CHANGED = 0x8769, 36867, 306
_TIME = "%Y:%m:%d %H:%M:%S"


@dataclass(frozen=True)
class Groups:
    """numbers: (N,) int64, the group of each picture; of what has none, one of its own.

    note: what to tell of them.
    """

    numbers: np.ndarray
    note: str


def column_of(by: str) -> str:
    """Return the column of a table that `--group-by` names, "" where it means something else."""
    other = by in ("", SIMILAR) or re.fullmatch(r"folder(:\d+)?|time:.*", by) or "(" in by
    return "" if other else by.strip().casefold()


def group_pictures(
    by: str, entries: Sequence[Entry], digests: Sequence[str], root: Path
) -> Groups | None:
    """Group pictures as `--group-by` says; copies of one file always stay together.

    None without groups, and for `similar`, which needs features. Raises UserError where all are
    one group.
    """
    if by in ("", SIMILAR):
        return None
    if by.startswith("time:"):
        keys = _bursts(entries, root, _seconds(by))
    elif by.startswith("folder") and not column_of(by):
        level = int(by.partition(":")[2] or 0)
        keys = [_folder(entry, level) for entry in entries]
    elif "(" in by:
        keys = _matches(by, entries)
    else:
        keys = [entry.group for entry in entries]
    return grouped(keys, digests, f"--group-by {by}")


def grouped(keys: Sequence[str], digests: Sequence[str], by: str) -> Groups:
    """Give pictures with the same key, "" for none, or the same digest the same number.

    by: where the keys are from, for the note. Raises UserError where all are one group.
    """
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(mark, position), position)
        for position, (key, digest) in enumerate(zip(keys, digests, strict=True))
        for mark in ([f"key {key}"] if key else []) + [f"file {digest}"]
    ]
    numbers = np.arange(len(keys))
    for group in linked(pairs):
        numbers[group] = group[0]
    _, numbers = np.unique(numbers, return_inverse=True)
    sizes = np.bincount(numbers)
    if len(keys) > 1 and len(sizes) < 2:
        what = f"{by}: all {len(keys):,} pictures are in one group"
        raise usage_error(what, "nothing would be left to validate on", f"group by {WAYS}")
    largest = Counter(filter(None, keys)).most_common(1)
    of = f", {shown(largest[0][0])}" if largest else ""
    alone = sum(not key for key in keys)
    note = f"{by}: {count(len(sizes), 'group')}, the largest of {sizes.max():,} pictures{of}"
    note += f"; {count(alone, 'picture')} without one stand alone" if alone else ""
    return Groups(numbers.astype(np.int64), note)


def _folder(entry: Entry, level: int) -> str:
    """Return the name of the folder at a level of the path, from 1.

    0: the one that the picture lies in, unless that is the folder of its class.
    """
    folders = PurePosixPath(entry.path).parts[:-1]
    if level:
        return folders[level - 1] if level <= len(folders) else ""
    return folders[-1] if folders and folders[-1] != entry.label else ""


def _matches(pattern: str, entries: Sequence[Entry]) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise usage_error(f"--group-by {pattern!r} is no pattern", str(error), WAYS) from None
    if compiled.groups != 1:
        what = f"--group-by {pattern!r} has {compiled.groups} parts in parentheses, not one"
        raise usage_error(what, "", "put the part that tells the group in parentheses")
    names = (PurePosixPath(entry.path).name for entry in entries)
    keys = [found[1] or "" if (found := compiled.search(name)) else "" for name in names]
    if not any(keys):
        what = f"--group-by {pattern!r} matches no file name"
        raise usage_error(what, f"first: {shown(entries[0].path)}", "correct the pattern")
    return keys


def _seconds(by: str) -> float:
    try:
        return parse_duration(by.removeprefix("time:"))
    except ValueError as error:
        raise usage_error(f"--group-by {by}: the time {error}") from None


def _bursts(entries: Sequence[Entry], root: Path, seconds: float) -> list[str]:
    """Return a key for every picture of a folder taken within so many seconds of another."""
    times = capture_times([root / entry.path for entry in entries])
    if all(time is None for time in times):
        what = "--group-by time: no picture tells when it was taken (EXIF)"
        raise UserError(what, remedy=f"group by {WAYS}")
    keys = [""] * len(entries)
    folders = [PurePosixPath(entry.path).parent.as_posix() for entry in entries]
    timed = [(folders[n], time, n) for n, time in enumerate(times) if time is not None]
    before, first = ("", 0.0), ""
    for folder, time, n in sorted(timed):
        if folder != before[0] or time - before[1] > seconds:
            first = entries[n].path
        keys[n], before = first, (folder, time)
    return keys


def capture_times(files: Sequence[Path]) -> list[float | None]:
    """Return when each picture was taken, in seconds, by its EXIF; None where it does not say."""
    readable_formats()
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_capture_time, files))


def _capture_time(file: Path) -> float | None:
    try:
        with opened(file) as content, Image.open(content, formats=readable_formats()) as image:
            exif = image.getexif()
            text = exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED)
            taken = datetime.strptime(str(text).strip("\0 ")[:19], _TIME)
            return (taken - datetime(1970, 1, 1)).total_seconds()
    # A damaged EXIF block raises nearly anything; the scan says what is wrong with the file.
    except Exception:
        return None


def straddling(numbers: np.ndarray, splits: Sequence[str]) -> int:
    """Return how many groups lie in more than one split."""
    pairs = set(zip(numbers.tolist(), splits, strict=True))
    return len(pairs) - len(set(numbers.tolist()))


def lone_classes(labels: Sequence[str], numbers: np.ndarray, fewest: int) -> list[str]:
    """Return the classes that lie in fewer groups than so many."""
    pairs = Counter(label for label, _ in set(zip(labels, numbers.tolist(), strict=True)))
    return natural_sorted(name for name, groups in pairs.items() if groups < fewest)


@dataclass(frozen=True)
class Proposal:
    """A way to group that file names or capture times suggest. by: for `--group-by`.

    numbers: (N,), the group of each picture. evidence: in words.
    """

    by: str
    numbers: np.ndarray
    evidence: str


def propose_groups(
    paths: Sequence[str], labels: Sequence[str], digests: Sequence[str], root: Path
) -> list[Proposal]:
    """Return ways to group that file names or capture times suggest, the likeliest first.

    Pictures are suggested to belong together by the part of the name that many share, while each
    group is small and of one class; and by their capture times.
    """
    entries = [Entry(path, label, "") for path, label in zip(paths, labels, strict=True)]
    found: list[Proposal] = []
    for by in (*NAMES, f"time:{BURST_S}s"):
        try:
            groups = group_pictures(by, entries, digests, root)
        except UserError:  # no name has such a part, no picture a time
            continue
        assert groups is not None
        numbers, sizes = groups.numbers, np.bincount(groups.numbers)
        if any((numbers == other.numbers).all() for other in found):
            continue
        own = sizes[numbers]
        _, label = np.unique(labels, return_inverse=True)
        counts = np.zeros((len(sizes), label.max() + 1), dtype=np.int64)
        np.add.at(counts, (numbers, label), 1)
        several = own > 1
        pure = counts.max(axis=1)[sizes > 1].sum() / max(1, several.sum())
        enough = several.mean() >= LEAST_GROUPED and pure >= LEAST_PURE
        if enough and sizes.max() <= max(2, MOST_IN_ONE * len(labels)):
            first = np.flatnonzero(numbers == sizes.argmax())[:2]
            names = " and ".join(shown(PurePosixPath(paths[n]).name) for n in first)
            what = (
                f"taken within {BURST_S} s of others"
                if by.startswith("time:")
                else "named like others"
            )
            text = f"{several.sum():,} pictures are {what}, in {(sizes > 1).sum():,} groups"
            found.append(Proposal(by, numbers, f"{text} of up to {sizes.max():,}, such as {names}"))
    return sorted(found, key=lambda proposal: len(np.unique(proposal.numbers)))
