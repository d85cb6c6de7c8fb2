"""Scan a folder, manifest or shards of labelled pictures into a DatasetIndex for the rest."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from transferkit.data.checks import (
    case_warnings,
    check_classes,
    check_readable,
    check_split_classes,
    check_strict,
    left_out_warnings,
    nothing_readable,
)
from transferkit.data.decode import (
    DecodeError,
    Probe,
    probe,
)
from transferkit.data.depth import common_range
from transferkit.data.formats import readable_formats
from transferkit.data.listing import SPLITS as SPLITS
from transferkit.data.listing import Entry, Listing, read_folder
from transferkit.data.manifest import read_manifest
from transferkit.data.names import (
    class_name,
    did_you_mean,
    is_valid_text,
    natural_key,
    natural_sorted,
    shown,
)
from transferkit.data.reading import PLAIN, Reading
from transferkit.data.shards import is_shards, read_shards
from transferkit.data.splits import draw_validation
from transferkit.errors import UserError, usage_error

Use = Literal["train", "look", "measure"]


@dataclass(frozen=True)
class Unreadable:
    """A listed picture that cannot be used. path: relative to the root; reason: a few words."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The readable pictures of a data set, in natural order of their paths.

    root: absolute. classes: K names in natural order; a label is a position in them.
    paths: N, relative to root with forward slashes (absolute where a manifest reaches outside).
    labels: (N,) int64. splits: (N,) of "train", "val", "test". digests: N, of the files' bytes.
    sizes: (N, 2) int64, width and height in pixels after EXIF orientation.
    dhashes: (N,) uint64, see `transferkit.data.decode.difference_hash`.
    drawn_split: the data set does not say itself which pictures are for validation.
    reading: how the files are read; its depth_range as given or, from training pictures, measured.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    digests: tuple[str, ...]
    sizes: np.ndarray
    dhashes: np.ndarray
    unreadable: tuple[Unreadable, ...]
    warnings: tuple[str, ...]
    drawn_split: bool = False
    reading: Reading = PLAIN

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over class names, paths, labels, splits and contents; not over root."""
        hasher = hashlib.blake2b(digest_size=16)
        for name in self.classes:
            hasher.update(f"{name}\0".encode())
        rows = zip(
            self.paths, self.labels.tolist(), self.splits.tolist(), self.digests, strict=True
        )
        for path, label, split, digest in rows:
            hasher.update(f"\n{path}\0{label}\0{split}\0{digest}".encode())
        return hasher.hexdigest()

    @cached_property
    def contents(self) -> str:
        """32 hex digits like `fingerprint`, but over no path: the same where all lies elsewhere."""
        hasher = hashlib.blake2b("\0".join(self.classes).encode(), digest_size=16)
        for row in zip(self.labels.tolist(), self.splits.tolist(), self.digests, strict=True):
            hasher.update("\n{}\0{}\0{}".format(*row).encode())
        return hasher.hexdigest()

    def __len__(self) -> int:
        """Return the number of pictures, N."""
        return len(self.paths)

    def of_split(self, split: str) -> np.ndarray:
        """Return the positions of a split's pictures, ascending, int64."""
        return np.flatnonzero(self.splits == split).astype(np.int64)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of pictures of every class in every split: class -> split -> number."""
        found = {name: dict.fromkeys(SPLITS, 0) for name in self.classes}
        for label, split in zip(self.labels.tolist(), self.splits.tolist(), strict=True):
            found[self.classes[label]][split] += 1
        return found

    def file(self, position: int) -> Path:
        """Return the absolute path of the picture at a position."""
        return self.root / self.paths[position]


@dataclass(frozen=True)
class ScanOptions:
    """How to read a data set.

    manifest: a CSV table to read instead of folders. val_fraction: share of each class that goes
    to validation where the data brings none, > 0 and < 1. seed: of that draw. strict: unreadable
    pictures are an error. exclude: class names to leave out. reading: how files are read.
    allow_outside: see `read_manifest`. use: "train" refuses what nothing can be trained
    on (no training part, one class alone, a class without a picture or that training lacks);
    "look" makes warnings of that, and "measure" takes what there is.
    """

    manifest: Path | None = None
    val_fraction: float = 0.2
    seed: int = 0
    strict: bool = False
    exclude: tuple[str, ...] = ()
    reading: Reading = PLAIN
    allow_outside: bool = False
    use: Use = "train"


def scan(
    data: Path | None,
    options: ScanOptions = ScanOptions(),
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetIndex:
    """Read every picture of a data set once and return the index of those that can be used.

    data: a folder, or a name of shards; with `options.manifest` the folder its paths start from, or
    None. Shards at an address must have been fetched.
    on_progress: called with (pictures read, pictures listed), from this thread.
    Raises UserError for everything that is wrong with the data; nothing is written.
    """
    listing = _listing(data, options)
    require = partial(_require, options.use, listing)
    require(lambda: check_classes(listing, 2 if options.use != "measure" else 0))
    listing.entries.sort(key=lambda entry: natural_key(entry.path))
    probes = probe_all(listing, options.reading, on_progress)
    pairs = list(zip(listing.entries, probes, strict=True))
    reasons = {entry.path: found for entry, found in pairs if isinstance(found, str)}
    if options.strict:
        check_strict(listing.root, reasons)
    usable = [(entry, found) for entry, found in pairs if isinstance(found, Probe)]
    require(lambda: check_readable(listing, reasons))
    require(lambda: check_split_classes(listing, reasons))
    if not usable:
        raise nothing_readable(listing, reasons)
    splits = _drawn_splits(usable, options, listing)
    for entry, _ in usable:
        listing.classes.setdefault(entry.label, "")
    listing.warnings += left_out_warnings(listing, reasons) + case_warnings(listing)
    return make_index(listing, usable, splits, reasons, options.reading)


def _require(use: str, listing: Listing, check: Callable[[], object]) -> None:
    """Make what a check for training raises a warning where one only looks, and nothing else."""
    try:
        check()
    except UserError as problem:
        if use == "train" or not listing.entries:
            raise
        if use == "look":
            where = "; ".join(problem.where.splitlines())
            text = f"{problem.what}: finetune would refuse this data set"
            listing.warnings.append(f"{text} ({where})" if where else text)


def _listing(data: Path | None, options: ScanOptions) -> Listing:
    """List the pictures as the options say, after a check of the options themselves."""
    if not 0 < options.val_fraction < 1:
        raise usage_error(
            f"a validation fraction of {options.val_fraction} is impossible",
            remedy="give --val-fraction a number above 0 and below 1, such as 0.2",
        )
    exclude = tuple(class_name(name) for name in options.exclude)
    if options.manifest is not None:
        if data is not None and not data.is_dir():
            problem = "is not a folder" if data.exists() else "does not exist"
            remedy = "leave it out: paths are then relative to the manifest's own folder"
            raise usage_error(f"{shown(str(data))} {problem}", remedy=remedy)
        reads = (options.allow_outside, options.use == "train")
        listing = read_manifest(options.manifest, data, exclude, *reads)
    elif data is None:
        raise usage_error("no data given", remedy="give a folder of pictures, or --manifest FILE")
    elif is_shards(data):
        listing = read_shards(data, exclude)
    else:
        listing = read_folder(data, exclude, options.use == "train")
    unknown = natural_sorted(set(exclude) - listing.excluded)
    if unknown:
        hints = [shown(name) + did_you_mean(name, listing.classes) for name in unknown]
        classes = ", ".join(shown(name) for name in natural_sorted(listing.classes)[:20])
        raise usage_error(f"--exclude names no class: {', '.join(hints)}", f"classes: {classes}")
    return listing


def probe_all(
    listing: Listing, reading: Reading, on_progress: Callable[[int, int], None] | None
) -> list[Probe | str]:
    """Return what each of the listing's files holds, or why it cannot be used; in their order."""

    def probe_one(entry: Entry) -> Probe | str:
        if entry.problem:
            return entry.problem
        try:
            return probe(listing.root / entry.path, reading)
        except DecodeError as error:
            return str(error)

    # Loads Pillow's plug-ins before there are threads.
    readable_formats()
    found: list[Probe | str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(probe_one, listing.entries):
            found.append(result)
            if on_progress is not None:
                on_progress(len(found), len(listing.entries))
    return found


def _drawn_splits(
    usable: Sequence[tuple[Entry, Probe]], options: ScanOptions, listing: Listing
) -> list[str]:
    """Return every picture's split; draws those that the data leaves open."""
    open_ones = [(entry, found) for entry, found in usable if entry.split == ""]
    labels = [entry.label for entry, _ in open_ones]
    digests = [found.digest for _, found in open_ones]
    draw = partial(draw_validation, labels, digests, options.val_fraction, options.seed)
    _require(options.use, listing, draw)
    drawn = iter(draw(may_fail=True))
    splits = [entry.split or ("val" if next(drawn) else "train") for entry, _ in usable]
    if open_ones and listing.lacks_val and options.use != "measure":
        listing.warnings.append(
            f"no validation part found: {options.val_fraction:.0%} of each class is taken from "
            "training for it"
        )
    return splits


def _writable(path: str) -> str:
    """Return the path, with escapes where it could not be written to a text file."""
    return path if is_valid_text(path) else shown(path)


def make_index(
    listing: Listing,
    usable: Sequence[tuple[Entry, Probe]],
    splits: Sequence[str],
    reasons: Mapping[str, str],
    reading: Reading = PLAIN,
) -> DatasetIndex:
    """Put together what was found; reasons: path to reason of the unreadable pictures."""
    classes = natural_sorted(listing.classes)
    number = {name: label for label, name in enumerate(classes)}
    sizes = [(found.width, found.height) for _, found in usable]
    return DatasetIndex(
        root=listing.root,
        classes=tuple(classes),
        paths=tuple(entry.path for entry, _ in usable),
        labels=np.array([number[entry.label] for entry, _ in usable], dtype=np.int64),
        splits=np.array(splits, dtype="<U5"),
        digests=tuple(found.digest for _, found in usable),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        dhashes=np.array([found.dhash for _, found in usable], dtype=np.uint64),
        unreadable=tuple(Unreadable(_writable(path), reason) for path, reason in reasons.items()),
        warnings=tuple(listing.warnings),
        drawn_split=any(entry.split == "" for entry, _ in usable),
        reading=_measured(reading, [found for _, found in usable], splits),
    )


def _measured(reading: Reading, probes: Sequence[Probe], splits: Sequence[str]) -> Reading:
    """Return how to read the pictures: with one scale for all of more than 8 bits."""
    if reading.depth_range is not None:
        return reading
    train = "train" in splits
    pairs = zip(probes, splits, strict=True)
    ranges = [p.range for p, split in pairs if p.range and (split == "train" or not train)]
    return replace(reading, depth_range=common_range(ranges))


def depth_notice(index: DatasetIndex) -> str:
    """Say on which scale pictures of more than 8 bits are read, "" where there are none."""
    if index.reading.depth_range is None:
        return ""
    low, high = (f"{value:,.6g}" for value in index.reading.depth_range)
    return (
        f"pictures of more than 8 bits: values {low} to {high} become black to white in all of "
        "them; another range: --depth-range LOW,HIGH"
    )
