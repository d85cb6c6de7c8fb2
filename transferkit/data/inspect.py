"""What a data set looks like, and what about it is likely to spoil a training."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from transferkit.data.duplicates import exact_groups, near_groups
from transferkit.data.framing import cut_away
from transferkit.data.groups import propose_groups
from transferkit.data.index import DatasetIndex, Unreadable, depth_notice
from transferkit.data.names import count, shown
from transferkit.data.preprocessing import Preprocessing
from transferkit.events import Show, silent

SMALL_PX = 32
IMBALANCE_RATIO = 3.0
FEW_TRAINING_PICTURES = 10
FEW_VALIDATION_PICTURES = 50
USUAL_FRAMING = Preprocessing(224, 224, 0.875, "center", "bicubic", (), ())
"""That of the default backbone."""


@dataclass(frozen=True)
class Group:
    """Pictures that are the same or look alike; the three tuples run in parallel."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def across_splits(self) -> bool:
        """Whether the pictures lie in more than one split."""
        return len(set(self.splits)) > 1


@dataclass(frozen=True)
class Sizes:
    """Widths and heights in pixels: (smallest, median, largest). small: below `SMALL_PX`."""

    width: tuple[int, float, int]
    height: tuple[int, float, int]
    small: int


@dataclass(frozen=True)
class Proposed:
    """A way to group pictures. by: for `--group-by`. groups: their number. evidence: in words."""

    by: str
    groups: int
    evidence: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    counts: class to split to number of pictures. imbalance: largest over smallest class of train.
    exact_duplicates: groups of byte-identical files; label_conflicts: those of them under several
    classes. near_duplicates: groups that look alike. proposals: ways to group pictures that names
    or capture times suggest. warnings: one sentence for each thing that matters, with what to do
    about it; the scan's own first.
    """

    root: str
    fingerprint: str
    pictures: int
    counts: dict[str, dict[str, int]]
    sizes: Sizes
    imbalance: float
    unreadable: tuple[Unreadable, ...]
    exact_duplicates: tuple[Group, ...]
    label_conflicts: tuple[Group, ...]
    near_duplicates: tuple[Group, ...]
    proposals: tuple[Proposed, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain dicts, lists, numbers and strings, ready for JSON."""
        plain = asdict(self)
        for name in ("exact_duplicates", "label_conflicts", "near_duplicates"):
            for row, group in zip(plain[name], getattr(self, name), strict=True):
                row["across_splits"] = group.across_splits
        return plain


def inspect(index: DatasetIndex, show: Show = silent) -> Inspection:
    """Return counts, sizes, duplicates and warnings of a data set.

    Reads only the few pictures whose hashes are similar once more.
    """
    exact = _groups(index, exact_groups(index.digests))
    files = [index.file(position) for position in range(len(index))]
    found, note = near_groups(files, index.digests, index.dhashes, index.reading, show)
    near = _groups(index, found)
    counts = index.counts
    train = [splits["train"] for splits in counts.values()]
    sizes = _sizes(index)
    scale = depth_notice(index)
    conflicts = tuple(group for group in exact if len(set(group.labels)) > 1)
    labels = [index.classes[label] for label in index.labels]
    grouped = index.groups is not None
    ways = [] if grouped else propose_groups(index.paths, labels, index.digests, index.root)
    proposals = tuple(Proposed(w.by, len(np.unique(w.numbers)), w.evidence) for w in ways)
    warnings = [
        *index.warnings,
        *([scale] if scale else []),
        *_duplicate_warnings(exact, conflicts, near),
        *_group_warnings(proposals),
        *_count_warnings(counts),
        *_size_warnings(sizes, len(index)),
        *cut_away(index.sizes, USUAL_FRAMING, "finetune "),
        *([note] if note else []),
    ]
    return Inspection(
        root=str(index.root),
        fingerprint=index.fingerprint,
        pictures=len(index),
        counts=counts,
        sizes=sizes,
        imbalance=max(train) / max(1, min(train)),
        unreadable=index.unreadable,
        exact_duplicates=exact,
        label_conflicts=conflicts,
        near_duplicates=near,
        proposals=proposals,
        warnings=tuple(warnings),
    )


def _groups(index: DatasetIndex, groups: Iterable[Sequence[int]]) -> tuple[Group, ...]:
    return tuple(
        Group(
            tuple(index.paths[position] for position in group),
            tuple(index.classes[index.labels[position]] for position in group),
            tuple(str(index.splits[position]) for position in group),
        )
        for group in groups
    )


def _sizes(index: DatasetIndex) -> Sizes:
    width, height = (
        (int(column.min()), float(np.median(column)), int(column.max())) for column in index.sizes.T
    )
    return Sizes(width, height, int(np.sum(index.sizes.min(axis=1) < SMALL_PX)))


def _duplicate_warnings(
    exact: Sequence[Group], conflicts: Sequence[Group], near: Sequence[Group]
) -> Iterable[str]:
    if conflicts:
        yield (
            f"{count(len(conflicts), 'file')} under more than one class ({_example(conflicts)}): "
            "the labels contradict each other; keep each file under its right class"
        )
    across = [group for group in exact if group.across_splits]
    if across:
        yield (
            f"{count(len(across), 'file')} in more than one split ({_example(across)}): the score "
            "will look better than it is; keep each in one split"
        )
    spare = sum(len(group.paths) - len(set(group.splits)) for group in exact)
    if spare:
        within = [group for group in exact if len(group.paths) > len(set(group.splits))]
        yield (
            f"{count(spare, 'exact copy', 'exact copies')} within a split ({_example(within)}): "
            "copies count double; remove them"
        )
    across = [group for group in near if group.across_splits]
    if across:
        yield (
            f"{count(len(across), 'group')} of pictures that look alike in more than one split "
            f"({_example(across)}): the score may look better than it is; keep each group in one "
            "split, by folders or by a manifest"
        )


def _group_warnings(proposals: Sequence[Proposed]) -> Iterable[str]:
    for way in proposals[:1]:
        yield (
            f"{way.evidence}: where they show the same, a split that parts them makes the score "
            f"look better than it is; keep them together: finetune --group-by {shlex.quote(way.by)}"
        )


def _count_warnings(counts: dict[str, dict[str, int]]) -> Iterable[str]:
    train = {name: splits["train"] for name, splits in counts.items()}
    largest, smallest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[largest] >= IMBALANCE_RATIO * train[smallest]:
        yield (
            f"classes are imbalanced: {shown(largest)} has {train[largest]:,} training pictures, "
            f"{shown(smallest)} has {train[smallest]:,}; use --balance sampler or --balance loss, "
            "and read the accuracy of each class"
        )
    few = [name for name, number in train.items() if number < FEW_TRAINING_PICTURES]
    if few:
        names = ", ".join(f"{shown(name)} ({train[name]})" for name in few[:5])
        yield (
            f"{count(len(few), 'class', 'classes')} with fewer than {FEW_TRAINING_PICTURES} "
            f"training pictures: {names}{', …' if len(few) > 5 else ''}; add pictures if you can"
        )
    validation = sum(splits["val"] for splits in counts.values())
    if 0 < validation < FEW_VALIDATION_PICTURES:
        yield (
            f"only {count(validation, 'validation picture')}: one picture more or less moves the "
            f"accuracy by {100 / validation:.1f} points; add pictures, or train with a larger "
            "finetune --val-fraction"
        )


def _size_warnings(sizes: Sizes, pictures: int) -> Iterable[str]:
    if sizes.small:
        yield (
            f"{sizes.small:,} of {count(pictures, 'picture')} narrower or lower than {SMALL_PX} "
            "pixels: they are enlarged and show little; use larger originals if there are any"
        )


def _example(groups: Sequence[Group]) -> str:
    first = groups[0].paths
    more = f", {len(first) - 2} more" if len(first) > 2 else ""
    return f"first: {shown(first[0])} and {shown(first[1])}{more}"
