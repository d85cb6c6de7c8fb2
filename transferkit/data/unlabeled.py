"""Pictures without labels: any folder, nested as it likes, or shards, as an index of one class."""

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from transferkit.data.checks import left_out_warnings
from transferkit.data.files import walk
from transferkit.data.index import DatasetIndex, make_index, read_all
from transferkit.data.listing import Entry, Listing, name_problem
from transferkit.data.names import count, listed, shown
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
    readable, reasons = read_all(listing, reading, strict, on_progress)
    if len(readable) < 2:
        what = f"{shown(str(data))} holds {count(len(readable), 'readable picture')}"
        where = listed([f"{shown(path)}: {reason}" for path, reason in reasons.items()], 5)
        remedy = "give a folder with hundreds of pictures or more"
        raise UserError(f"{what}; pretraining needs many", where, remedy)
    listing.warnings += left_out_warnings(listing, reasons)
    splits = held_out([probe.digest for _, probe in readable], holdout, seed)
    return make_index(listing, readable, splits, reasons, reading)


def _listing(data: Path, by_folder: bool) -> Listing:
    """List the pictures of a folder; the class is the folder that each lies in, or "" for all."""
    if not data.is_dir():
        problem = "is a file, not a folder" if data.exists() else "does not exist"
        raise usage_error(f"{shown(str(data))} {problem}", "", "give a folder of pictures")
    files = walk(data)
    listing = Listing(root=Path(os.path.abspath(data)))
    for path in files.pictures:
        label = os.path.dirname(path) if by_folder else ""
        listing.entries.append(Entry(path, label, "", name_problem(path)))
        listing.classes.setdefault(label, label)
    listing.others["", "train"] = files.others
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
