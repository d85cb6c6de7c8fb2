"""What must hold of a data set before it is trained on; each problem is one message."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transferkit.data.files import walk
from transferkit.data.listing import Entry, Listing
from transferkit.data.names import count, did_you_mean, listed, natural_sorted, quoted, shown
from transferkit.errors import UserError

_SHOWN = 5


def check_classes(listing: Listing, at_least: int = 2) -> None:
    """Raise where there is no picture at all, or too few classes; before any file is opened."""
    root = shown(str(listing.root))
    if not listing.entries:
        others = sum(listing.others.values(), Counter[str]())
        where = f"{count(len(listing.classes), 'class folder')}, {_none_a_picture(others)}"
        remedy = "give a folder with one folder of pictures for each class"
        raise UserError(f"{root} holds no pictures", where, remedy)
    if len(listing.classes) >= at_least:
        return
    remedy = "a classifier needs two classes or more: add a folder for each further class"
    for name, folder in listing.classes.items():
        inside = walk(listing.root / folder, nested=False).folders if folder else []
        if len(inside) > 1:
            path = shown(str(listing.root / folder))
            remedy = f"if its {len(inside)} subfolders are the classes, give {path} instead"
        raise UserError(f"{root} has only one class: {shown(name)}", remedy=remedy)


def check_strict(root: Path, reasons: Mapping[str, str]) -> None:
    """Raise where any listed picture is unreadable. reasons: path to reason."""
    if reasons:
        lines = [f"{shown(path)}: {reason}" for path, reason in reasons.items()]
        raise UserError(
            f"{count(len(reasons), 'unreadable picture')} in {shown(str(root))}",
            listed(lines),
            "repair or remove them, or leave them out by running without --strict",
        )


def check_readable(listing: Listing, reasons: Mapping[str, str]) -> None:
    """Raise where a class has no readable picture to train on, with what it has instead."""
    training: dict[str, list[Entry]] = {name: [] for name in listing.classes}
    for entry in listing.entries:
        if entry.split in ("", "train"):
            training[entry.label].append(entry)
    empty = natural_sorted(
        name
        for name, entries in training.items()
        if all(entry.path in reasons for entry in entries)
    )
    if not empty:
        return
    flags = " ".join(f"--exclude {shlex.quote(quoted(name))}" for name in empty[:_SHOWN])
    remedy = f"leave the {'classes' if len(empty) > 1 else 'class'} out with {flags}"
    if any(training[name] for name in empty):
        remedy = f"convert them to JPEG or PNG, or {remedy}"
    if len(empty) == 1:
        name = empty[0]
        folder = listing.classes[name]
        what = f"{shown(str(listing.root / folder)) if folder else f'class {shown(name)}'}"
        found = _what_was_found(listing, name, training[name], reasons)
        raise UserError(f"{what} has no readable picture", found, remedy)
    what = f"{len(empty)} classes of {shown(str(listing.root))} have no readable picture"
    lines = [
        f"{shown(name)}: {_what_was_found(listing, name, training[name], reasons)}"
        for name in empty
    ]
    raise UserError(what, listed(lines, _SHOWN), remedy)


def nothing_readable(listing: Listing, reasons: Mapping[str, str]) -> UserError:
    """Return what to tell of a data set of which no picture can be read."""
    what = f"{shown(str(listing.root))} has no readable picture"
    return UserError(
        what, _reasons_counted(listing.entries, reasons), "convert them to JPEG or PNG"
    )


def check_split_classes(listing: Listing, reasons: Mapping[str, str]) -> None:
    """Raise where val or test has classes that training has not, or has nothing to read.

    Classes that training has and val or test has not become a warning in the listing.
    """
    lines = []
    for split in ("val", "test"):
        entries = [entry for entry in listing.entries if entry.split == split]
        if entries and all(entry.path in reasons for entry in entries):
            what = f"{shown(str(listing.root))} has no readable picture in {split}"
            raise UserError(what, _reasons_counted(entries, reasons), "convert them to JPEG or PNG")
        names = {entry.label for entry in entries if entry.path not in reasons}
        lines += [
            f"{split}: {shown(name)}{did_you_mean(name, listing.classes)}"
            for name in natural_sorted(names - listing.classes.keys())
        ]
        absent = natural_sorted(listing.classes.keys() - names) if entries else []
        if absent:
            listing.warnings.append(
                f"{count(len(absent), 'class', 'classes')} of train without a readable picture in "
                f"{split} ({_few(absent)}): nothing can be measured for them there"
            )
    if lines:
        raise UserError(
            f"{count(len(lines), 'class', 'classes')} not in train",
            f"{listed(lines, _SHOWN)}\ntrain has: {_few(natural_sorted(listing.classes), 20)}",
            "give every split the class names of train, or leave classes out with --exclude NAME",
        )


def left_out_warnings(listing: Listing, reasons: Mapping[str, str]) -> list[str]:
    """Return one sentence on the unreadable pictures, and one on the files that are no pictures."""
    warnings = []
    if reasons:
        unreadable = [entry for entry in listing.entries if entry.path in reasons]
        warnings.append(
            f"{len(reasons):,} of {count(len(listing.entries), 'picture')} cannot be read and "
            f"{'is' if len(reasons) == 1 else 'are'} left out: "
            f"{_reasons_counted(unreadable, reasons)}"
        )
    others = sum(listing.others.values(), Counter[str]())
    if others:
        total = count(others.total(), "file that is no picture", "files that are no pictures")
        warnings.append(f"{total} left out: {_suffixes_counted(others)}")
    return warnings


def case_warnings(listing: Listing) -> list[str]:
    """Return a sentence on classes, and one on pictures, that only letter case tells apart."""
    warnings = []
    if classes := _alike(listing.classes):
        warnings.append(
            f"{count(len(classes), 'class', 'classes')} called like another but for letter case "
            f"({classes[0]}): they are trained as different classes; if they mean the same, give "
            "them one name"
        )
    # pictures of such classes are alike, too, and were told of
    pictures = _alike(dict.fromkeys(f"{e.label}\0{e.path}" for e in listing.entries), "\0")
    if pictures:
        warnings.append(
            f"{count(len(pictures), 'picture')} called like another but for letter case "
            f"({pictures[0]}): a copy on Windows or macOS would keep one of each"
        )
    return warnings


def _alike(names: Iterable[str], after: str = "") -> list[str]:
    """Return "first: A and a" for the first, and what there is besides, of names alike in case.

    after: what comes before it is compared as it is, and not shown.
    """
    first: dict[str, str] = {}
    found = []
    for name in names:
        head, _, tail = name.rpartition(after) if after else ("", "", name)
        earlier = first.setdefault(f"{head}\0{tail.casefold()}", tail)
        if earlier != tail:
            found.append(f"first: {shown(earlier)} and {shown(tail)}")
    return found


def _what_was_found(
    listing: Listing, name: str, entries: Sequence[Entry], reasons: Mapping[str, str]
) -> str:
    """Say what a class without a readable picture has: "37 files found: 36 HEIC (…), …"."""
    others = Counter[str]()
    for split in ("", "train"):
        others += listing.others.get((name, split), Counter())
    if not entries:
        return _none_a_picture(others)
    texts = [_reasons_counted(entries, reasons)]
    if others:
        texts.append(_suffixes_counted(others))
    return f"{count(len(entries) + others.total(), 'file')} found: {', '.join(texts)}"


def _none_a_picture(others: Counter[str]) -> str:
    if not others:
        return "no files found"
    total = count(others.total(), "file")
    return f"{total} found, none of them a picture: {_suffixes_counted(others)}"


def _suffixes_counted(others: Counter[str]) -> str:
    """Return "12 .txt, 1 .pdf"."""
    common = others.most_common(_SHOWN)
    texts = [f"{number:,} {shown(suffix) or 'without a suffix'}" for suffix, number in common]
    return ", ".join(texts) + (", …" if len(others) > _SHOWN else "")


def _reasons_counted(entries: Sequence[Entry], reasons: Mapping[str, str]) -> str:
    """Return "36 HEIC (not supported), 1 truncated (heron/IMG_0041.jpg)"."""
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        by_reason.setdefault(reasons[entry.path], []).append(entry.path)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    texts = []
    for reason, paths in ordered[:_SHOWN]:
        first = shown(paths[0]) if len(paths) == 1 else f"first: {shown(paths[0])}"
        # "HEIC (not supported)" says it all, and needs no second bracket.
        texts.append(f"{len(paths):,} {reason}" + ("" if reason.endswith(")") else f" ({first})"))
    return ", ".join(texts) + (", …" if len(ordered) > _SHOWN else "")


def _few(names: Sequence[str], limit: int = _SHOWN) -> str:
    return ", ".join(map(shown, names[:limit])) + (", …" if len(names) > limit else "")
