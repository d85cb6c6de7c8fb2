"""Scan a folder, manifest or shards of labelled pictures into a DatasetIndex for the rest."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from transferkit.data import checks
from transferkit.data.corrections import apply_corrections
from transferkit.data.decode import DecodeError, Probe, probe
from transferkit.data.depth import common_range
from transferkit.data.formats import readable_formats
from transferkit.data.groups import WAYS, column_of, group_pictures, lone_classes, straddling
from transferkit.data.listing import SPLITS, Entry, Listing, read_folder
from transferkit.data.manifest import read_manifest
from transferkit.data.names import (
    class_name,
    count,
    did_you_mean,
    is_valid_text,
    natural_key,
    natural_sorted,
    shown,
)
from transferkit.data.reading import PLAIN, Reading
from transferkit.data.shards import is_shards, read_shards
from transferkit.data.splits import draw_grouped, draw_validation, folds_of
from transferkit.errors import UserError, usage_error

Use = Literal["train", "look", "measure"]
Readable = Sequence[tuple[Entry, Probe]]
"""The pictures that can be used."""
Reasons = Mapping[str, str]
"""Path to reason of the pictures that cannot be read."""


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
    groups: (N,) int64, pictures of one belong together (a burst, a visit); None: each is its own.
    folds: (N,) int64, where every picture trains and is judged without its fold; None without.
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
    groups: np.ndarray | None = None
    folds: np.ndarray | None = None

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over class names, paths, labels, splits and contents; not over root."""
        rows = zip(
            self.paths, self.labels.tolist(), self.splits.tolist(), self.digests, strict=True
        )
        return _digest("".join(f"{name}\0" for name in self.classes), rows)

    @cached_property
    def contents(self) -> str:
        """32 hex digits like `fingerprint`, but over no path: the same where all lies elsewhere."""
        rows = zip(self.labels.tolist(), self.splits.tolist(), self.digests, strict=True)
        return _digest("\0".join(self.classes), rows)

    @cached_property
    def picture_digest(self) -> str:
        """32 hex digits over paths and contents alone: the same for other splits and labels."""
        return _digest("", zip(self.paths, self.digests, strict=True))

    def __len__(self) -> int:
        """Return the number of pictures, N."""
        return len(self.paths)

    def of_split(self, split: str) -> np.ndarray:
        """Return the positions of a split's pictures, ascending, int64."""
        return np.flatnonzero(self.splits == split).astype(np.int64)

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of pictures of every class in every split: class -> split -> number."""
        counts = {name: dict.fromkeys(SPLITS, 0) for name in self.classes}
        for label, split in zip(self.labels.tolist(), self.splits.tolist(), strict=True):
            counts[self.classes[label]][split] += 1
        return counts

    def file(self, position: int) -> Path:
        """Return the absolute path of the picture at a position."""
        return self.root / self.paths[position]


def _digest(start: str, rows: Iterable[Iterable[object]]) -> str:
    hasher = hashlib.blake2b(start.encode(), digest_size=16)
    for row in rows:
        hasher.update(("\n" + "\0".join(map(str, row))).encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class ScanOptions:
    """How to read a data set.

    manifest: a CSV table to read instead of folders. val_fraction: share of each class that goes
    to validation where the data brings none, > 0 and < 1. seed: of that draw. strict: unreadable
    pictures are an error. exclude: class names to leave out. reading: how files are read.
    allow_outside: see `read_manifest`. group_by: see `group_pictures`. corrections: a table of
    right labels, see `apply_corrections`. use: "train" refuses what nothing can be trained on (no
    training part, one class alone, a class without a picture or that training lacks); "look" makes
    warnings of that, and "measure" takes what there is.
    """

    manifest: Path | None = None
    val_fraction: float = 0.2
    seed: int = 0
    strict: bool = False
    exclude: tuple[str, ...] = ()
    reading: Reading = PLAIN
    allow_outside: bool = False
    group_by: str = ""
    use: Use = "train"
    corrections: Path | None = None


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
    if options.corrections is not None:
        apply_corrections(listing, options.corrections, bool(options.exclude))
    require = partial(_require, options.use, listing)
    require(lambda: checks.check_classes(listing, 2 if options.use != "measure" else 0))
    listing.entries.sort(key=lambda entry: natural_key(entry.path))
    readable, reasons = read_all(listing, options.reading, options.strict, on_progress)
    require(lambda: checks.check_readable(listing, reasons))
    require(lambda: checks.check_split_classes(listing, reasons))
    if not readable:
        raise checks.nothing_readable(listing, reasons)
    groups = None
    try:
        groups = _groups(readable, options, listing)
    except UserError:
        if options.use != "measure":  # these may be other pictures than those that were grouped
            raise
    splits = _drawn_splits(readable, options, listing, groups)
    for entry, _ in readable:
        listing.classes.setdefault(entry.label, "")
    listing.warnings += checks.left_out_warnings(listing, reasons) + checks.case_warnings(listing)
    found = make_index(listing, readable, splits, reasons, options.reading)
    return found if groups is None else with_groups(found, groups)


def _require(use: str, listing: Listing, check: Callable[[], object]) -> None:
    """Do a check for training: raise, or only warn ("look"), or ignore its failure ("measure")."""
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
        what = f"a validation fraction of {options.val_fraction} is impossible"
        remedy = "give --val-fraction a number above 0 and below 1, such as 0.2"
        raise usage_error(what, remedy=remedy)
    exclude = tuple(class_name(name) for name in options.exclude)
    to_train = options.use == "train"
    if options.manifest is not None:
        if data is not None and not data.is_dir():
            problem = "is not a folder" if data.exists() else "does not exist"
            remedy = "leave it out: paths are then relative to the manifest's own folder"
            raise usage_error(f"{shown(str(data))} {problem}", remedy=remedy)
        column = column_of(options.group_by)
        further = (exclude, options.allow_outside, to_train, column)
        listing = read_manifest(options.manifest, data, *further)
    elif data is None:
        raise usage_error("no data given", remedy="give a folder of pictures, or --manifest FILE")
    elif is_shards(data):
        listing = read_shards(data, exclude)
    else:
        listing = read_folder(data, exclude, to_train)
    unknown = natural_sorted(set(exclude) - listing.excluded)
    if unknown:
        hints = [shown(name) + did_you_mean(name, listing.classes) for name in unknown]
        classes = ", ".join(shown(name) for name in natural_sorted(listing.classes)[:20])
        raise usage_error(f"--exclude names no class: {', '.join(hints)}", f"classes: {classes}")
    return listing


def read_all(
    listing: Listing,
    reading: Reading,
    strict: bool,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Readable, Reasons]:
    """Read the listing's files; return, in their order, what can be used and why the rest cannot.

    Raises UserError where `strict` and not all can.
    """

    def probe_one(entry: Entry) -> Probe | str:
        try:
            return entry.problem or probe(listing.root / entry.path, reading)
        except DecodeError as error:
            return str(error)

    # Loads Pillow's plug-ins before there are threads.
    readable_formats()
    readable: list[tuple[Entry, Probe]] = []
    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = zip(listing.entries, pool.map(probe_one, listing.entries), strict=True)
        for done, (entry, result) in enumerate(results, start=1):
            if isinstance(result, Probe):
                readable.append((entry, result))
            else:
                reasons[entry.path] = result
            if on_progress is not None:
                on_progress(done, len(listing.entries))
    if strict:
        checks.check_strict(listing.root, reasons)
    return readable, reasons


def _groups(readable: Readable, options: ScanOptions, listing: Listing) -> np.ndarray | None:
    """Return the group of every picture, None without groups, and tell of them."""
    by = options.group_by
    column = column_of(by)
    if column and column not in listing.columns:
        where = f"its columns: {shown(', '.join(listing.columns))}" if listing.columns else ""
        what = f"--group-by {shown(by)}: there is no table with such a column"
        raise usage_error(what + did_you_mean(column, listing.columns), where, f"group by {WAYS}")
    digests = [probe.digest for _, probe in readable]
    found = group_pictures(by, [entry for entry, _ in readable], digests, listing.root)
    if found is None:
        return None
    listing.warnings.append(found.note)
    return found.numbers


def with_groups(index: DatasetIndex, groups: np.ndarray) -> DatasetIndex:
    """Give pictures their groups (N,), and say what these cannot be held to."""
    texts = []
    labels = [index.classes[label] for label in index.labels]
    if not index.drawn_split and (number := straddling(groups, index.splits.tolist())):
        text = f"{count(number, 'group')} in more than one split: the score will look better than"
        texts.append(f"{text} it is; keep each group in one split")
    if few := lone_classes(labels, groups, 2):
        names = ", ".join([*map(shown, few[:3]), *(["…"] if len(few) > 3 else [])])
        text = (
            f"{count(len(few), 'class', 'classes')} in one group alone, and not validated: {names}"
        )
        texts.append(f"{text}; take pictures of another occasion")
    return replace(index, groups=groups, warnings=(*index.warnings, *texts))


def in_folds(index: DatasetIndex, number: int, seed: int) -> DatasetIndex:
    """Let training and validation pictures train, each judged without its fold, of so many.

    Copies of a file and pictures of one group are in one fold.
    """
    train = np.flatnonzero(index.splits != "test")
    groups = index.groups
    if groups is None:
        _, groups = np.unique(index.digests, return_inverse=True)
    if len(np.unique(groups[train])) < number:
        what = f"--folds {number} is more than there are groups of pictures to part"
        raise usage_error(what, remedy="take fewer folds, or label more")
    splits, folds = index.splits.copy(), np.full(len(index), -1)
    splits[train] = "train"
    folds[train] = folds_of(index.labels[train], groups[train], number, seed)
    return replace(index, splits=splits, folds=folds)


def _drawn_splits(
    readable: Readable, options: ScanOptions, listing: Listing, groups: np.ndarray | None
) -> list[str]:
    """Return every picture's split; draws those that the data leaves open."""
    open_ones = np.array([entry.split == "" for entry, _ in readable])
    undecided = [(entry, probe) for entry, probe in readable if entry.split == ""]
    labels = [entry.label for entry, _ in undecided]
    digests = [probe.digest for _, probe in undecided]
    if groups is not None:
        own = groups[open_ones]
        drawn = iter(draw_grouped(labels, own, options.val_fraction, options.seed))
    else:
        draw = partial(draw_validation, labels, digests, options.val_fraction, options.seed)
        _require(options.use, listing, draw)
        drawn = iter(draw(may_fail=True))
    splits = [entry.split or ("val" if next(drawn) else "train") for entry, _ in readable]
    if undecided and listing.lacks_val and options.use != "measure":
        listing.warnings.append(
            f"no validation part found: {options.val_fraction:.0%} of each class is taken from "
            "training for it"
        )
    return splits


def make_index(
    listing: Listing,
    readable: Readable,
    splits: Sequence[str],
    reasons: Reasons,
    reading: Reading = PLAIN,
) -> DatasetIndex:
    """Put the index together; what is deep is read on one scale, of the training pictures."""
    classes = natural_sorted(listing.classes)
    number = {name: label for label, name in enumerate(classes)}
    entries, probes = [entry for entry, _ in readable], [probe for _, probe in readable]
    if reading.depth_range is None:
        pairs = zip(probes, splits, strict=True)
        used = [p.range for p, s in pairs if p.range and (s == "train" or "train" not in splits)]
        reading = replace(reading, depth_range=common_range(used))
    return DatasetIndex(
        root=listing.root,
        classes=tuple(classes),
        paths=tuple(entry.path for entry in entries),
        labels=np.array([number[entry.label] for entry in entries], dtype=np.int64),
        splits=np.array(splits, dtype="<U5"),
        digests=tuple(probe.digest for probe in probes),
        sizes=np.array([(p.width, p.height) for p in probes], dtype=np.int64).reshape(-1, 2),
        dhashes=np.array([probe.dhash for probe in probes], dtype=np.uint64),
        unreadable=tuple(  # a text file takes no path that is not valid
            Unreadable(path if is_valid_text(path) else shown(path), reason)
            for path, reason in reasons.items()
        ),
        warnings=tuple(listing.warnings),
        drawn_split=any(entry.split == "" for entry in entries),
        reading=reading,
    )


def depth_notice(index: DatasetIndex) -> str:
    """Say on which scale pictures of more than 8 bits are read, "" where there are none."""
    if index.reading.depth_range is None:
        return ""
    low, high = (f"{value:,.6g}" for value in index.reading.depth_range)
    return (
        f"pictures of more than 8 bits: values {low} to {high} become black to white in all of "
        "them; another range: --depth-range LOW,HIGH"
    )
