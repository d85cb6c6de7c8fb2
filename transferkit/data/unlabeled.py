"""Pictures without labels: any folder, nested as it likes, or shards, as an index of one class."""

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from transferkit.data.checks import check_strict, left_out_warnings
from transferkit.data.decode import Probe
from transferkit.data.files import walk
from transferkit.data.formats import unsupported
from transferkit.data.index import DatasetIndex, make_index, probe_all
from transferkit.data.listing import Entry, Listing
from transferkit.data.names import count, is_valid_text, listed, shown
from transferkit.data.reading import PLAIN, Reading
from transferkit.data.shards import is_shards, read_shards
from transferkit.errors import UserError, usage_error

MOST_HELD_OUT = 500


def scan_unlabeled(
    data: Path,
    *,
    holdout: float = 0.05,
    by_folder: bool = False,
    seed: int = 0,
    strict: bool = False,
    reading: Reading = PLAIN,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetIndex:
    """Read every picture of a folder, and of all below it, or of shards once; names are ignored.

    holdout: share that goes to the split "val", at most `MOST_HELD_OUT` pictures, 0..1; the same
    files give the same split in any order. by_folder: the folder that a picture lies in is its
    class; not for shards. Raises UserError where there are fewer than two readable pictures.
    """
    if by_folder and is_shards(data):
        raise usage_error(f"{shown(str(data))} are shards: they have no folder for each identity")
    listing = read_shards(data, labelled=False) if is_shards(data) else _listing(data, by_folder)
    probes = probe_all(listing, reading, on_progress)
    pairs = list(zip(listing.entries, probes, strict=True))
    reasons = {entry.path: reason for entry, reason in pairs if isinstance(reason, str)}
    if strict:
        check_strict(listing.root, reasons)
    usable = [(entry, probe) for entry, probe in pairs if isinstance(probe, Probe)]
    if len(usable) < 2:
        raise too_few(data, len(usable), reasons)
    listing.warnings += left_out_warnings(listing, reasons)
    digests = [probe.digest for _, probe in usable]
    splits = held_out(digests, holdout, seed)
    return make_index(listing, usable, splits, reasons, reading)


def _listing(data: Path, by_folder: bool) -> Listing:
    """List the pictures of a folder; the class is the folder that each lies in, or "" for all."""
    if not data.is_dir():
        problem = "is a file, not a folder" if data.exists() else "does not exist"
        raise usage_error(f"{shown(str(data))} {problem}", "", "give a folder of pictures")
    found = walk(data)
    listing = Listing(root=Path(os.path.abspath(data)))
    for path in found.pictures:
        label = os.path.dirname(path) if by_folder else ""
        kind = found.unsupported.get(path)
        problem = unsupported(kind) if kind else ""
        problem = problem if is_valid_text(path) else "the name is not valid UTF-8"
        listing.entries.append(Entry(path, label, "", problem))
        listing.classes.setdefault(label, label)
    listing.others[("", "train")] = found.others
    return listing


def held_out(digests: list[str], share: float, seed: int) -> list[str]:
    """Return "val" for the share of the pictures that is kept aside, "train" for the rest.

    digests: N, of the files' bytes; equal files fall into the same part as far as that is possible.
    """
    wanted = min(MOST_HELD_OUT, math.ceil(share * len(digests)), len(digests) - 2)
    copies = Counter(digests)
    different = sorted(copies)
    aside: set[str] = set()
    for position in np.random.default_rng([seed, 5]).permutation(len(different)):
        digest = different[position]
        if copies[digest] <= wanted:
            aside.add(digest)
            wanted -= copies[digest]
    return ["val" if digest in aside else "train" for digest in digests]


def too_few(data: Path, number: int, reasons: dict[str, str]) -> UserError:
    """Return what to tell when there is nothing to learn from."""
    what = f"{shown(str(data))} holds {count(number, 'readable picture')}; pretraining needs many"
    where = listed([f"{shown(path)}: {reason}" for path, reason in reasons.items()], 5)
    return UserError(what, where, "give a folder with hundreds of pictures or more")
