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
_CONVERT = "convert them to JPEG or PNG"


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
        what = f"{count(len(reasons), 'unreadable picture')} in {shown(str(root))}"
        lines = [f"{shown(path)}: {reason}" for path, reason in reasons.items()]
        remedy = "repair or remove them, or leave them out by running without --strict"
        raise UserError(what, listed(lines), remedy)


def check_readable(listing: Listing, reasons: Mapping[str, str]) -> None:
    """Raise where a class has no readable picture to train on, with what it has instead."""
    training: dict[str, list[Entry]] = {name: [] for name in listing.classes}
    for entry in listing.entries:
        if entry.split in ("", "train"):
            training[entry.label].append(entry)
    without = {
        name: _contents(listing, name, training[name], reasons)
        for name in natural_sorted(training)
        if all(entry.path in reasons for entry in training[name])
    }
    if not without:
        return
    flags = " ".join(f"--exclude {shlex.quote(quoted(name))}" for name in [*without][:_SHOWN])
    remedy = f"leave the {'classes' if len(without) > 1 else 'class'} out with {flags}"
    if any(training[name] for name in without):
        remedy = f"{_CONVERT}, or {remedy}"
    if len(without) > 1:
        what = f"{len(without)} classes of {shown(str(listing.root))} have no readable picture"
        lines = [f"{shown(name)}: {contents}" for name, contents in without.items()]
        raise UserError(what, listed(lines, _SHOWN), remedy)
    ((name, contents),) = without.items()
    folder = listing.classes[name]
    what = shown(str(listing.root / folder)) if folder else f"class {shown(name)}"
    raise UserError(f"{what} has no readable picture", contents, remedy)


def nothing_readable(listing: Listing, reasons: Mapping[str, str], part: str = "") -> UserError:
    """Return the error for a data set, or a part of it (" in val"), without a readable picture."""
    what = f"{shown(str(listing.root))} has no readable picture{part}"
    return UserError(what, _reasons_counted(reasons), _CONVERT)


def check_split_classes(listing: Listing, reasons: Mapping[str, str]) -> None:
    """Raise where val or test has classes that training has not, or has nothing to read.

    Classes that training has and val or test has not become a warning in the listing.
    """
    lines = []
    for split in ("val", "test"):
        entries = [entry for entry in listing.entries if entry.split == split]
        if entries and all(entry.path in reasons for entry in entries):
            unread = {entry.path: reasons[entry.path] for entry in entries}
            raise nothing_readable(listing, unread, f" in {split}")
        names = {entry.label for entry in entries if entry.path not in reasons}
        lines += [
            f"{split}: {shown(name)}{did_you_mean(name, listing.classes)}"
            for name in natural_sorted(names - listing.classes.keys())
        ]
        absent = [shown(n) for n in natural_sorted(listing.classes.keys() - names) if entries]
        if absent:
            listing.warnings.append(
                f"{count(len(absent), 'class', 'classes')} of train without a readable picture in "
                f"{split} ({_few(absent)}): nothing can be measured for them there"
            )
    if lines:
        classes = [shown(name) for name in natural_sorted(listing.classes)]
        raise UserError(
            f"{count(len(lines), 'class', 'classes')} not in train",
            f"{listed(lines, _SHOWN)}\ntrain has: {_few(classes, 20)}",
            "give every split the class names of train, or leave classes out with --exclude NAME",
        )


def left_out_warnings(listing: Listing, reasons: Mapping[str, str]) -> list[str]:
    """Return one sentence on the unreadable pictures, and one on the files that are no pictures."""
    warnings = []
    if reasons:
        warnings.append(
            f"{len(reasons):,} of {count(len(listing.entries), 'picture')} cannot be read and "
            f"{'is' if len(reasons) == 1 else 'are'} left out: {_reasons_counted(reasons)}"
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
    # pictures of such classes are alike, too, and mentioned above
    if pictures := _alike(f"{e.label}\0{e.path}" for e in listing.entries):
        warnings.append(
            f"{count(len(pictures), 'picture')} called like another but for letter case "
            f"({pictures[0]}): a copy on Windows or macOS would keep one of each"
        )
    return warnings


def _alike(names: Iterable[str]) -> list[str]:
    """Return "first: A and a" for the first, and what there is besides, of names alike in case.

    What stands before a NUL is compared as it is, and not shown.
    """
    first: dict[tuple[str, str], str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        group, _, shown_name = name.rpartition("\0")
        earlier = first.setdefault((group, shown_name.casefold()), shown_name)
        if earlier != shown_name:
            pairs.append(f"first: {shown(earlier)} and {shown(shown_name)}")
    return pairs


def _contents(
    listing: Listing, name: str, entries: Sequence[Entry], reasons: Mapping[str, str]
) -> str:
    """Say what a class without a readable picture has: "37 files found: 36 HEIC (…), …"."""
    others = Counter[str]()
    for split in ("", "train"):
        others += listing.others.get((name, split), Counter())
    if not entries:
        return _none_a_picture(others)
    texts = [_reasons_counted({entry.path: reasons[entry.path] for entry in entries})]
    texts += [_suffixes_counted(others)] if others else []
    return f"{count(len(entries) + others.total(), 'file')} found: {', '.join(texts)}"


def _none_a_picture(others: Counter[str]) -> str:
    if not others:
        return "no files found"
    total = count(others.total(), "file")
    return f"{total} found, none of them a picture: {_suffixes_counted(others)}"


def _suffixes_counted(others: Counter[str]) -> str:
    """Return "12 .txt, 1 .pdf"."""
    return _few([f"{n:,} {shown(s) or 'without a suffix'}" for s, n in others.most_common()])


def _reasons_counted(reasons: Mapping[str, str]) -> str:
    """Return "36 HEIC (not supported), 1 truncated (heron/IMG_0041.jpg)"."""
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    texts = []
    for reason, those in sorted(paths.items(), key=lambda item: -len(item[1])):
        first = f" ({'first: ' if len(those) > 1 else ''}{shown(those[0])})"
        # "HEIC (not supported)" says it all, and needs no second bracket.
        texts.append(f"{len(those):,} {reason}{'' if reason.endswith(')') else first}")
    return _few(texts)


def _few(texts: Sequence[str], limit: int = _SHOWN) -> str:
    return ", ".join(texts[:limit]) + (", …" if len(texts) > limit else "")
