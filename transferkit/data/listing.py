"""Read the folder layouts: which file belongs to which class and split, before any is opened."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.data.files import FolderFiles, walk
from transferkit.data.formats import unsupported
from transferkit.data.names import class_name, count, is_valid_text, listed, natural_sorted, shown
from transferkit.errors import UserError, usage_error

SPLITS = ("train", "val", "test")

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

_UNLABELED = {"unlabeled", "unlabelled"}


@dataclass(frozen=True)
class Entry:
    """One listed picture. path: relative to the root, or absolute; problem: why it is unusable."""

    path: str
    label: str
    split: str
    problem: str = ""


@dataclass
class Listing:
    """What a folder or a manifest lists.

    entries: in no particular order; `split` is "" where a split is still to be drawn.
    classes: every class of the training part, also one that lists no picture, and its folder
        relative to the root ("" in a manifest).
    excluded: the classes that were left out on request.
    others: per class and split, the suffixes of its files that are no pictures.
    lacks_val: there are splits, but none to validate on.
    warnings: sentences for the user.
    """

    root: Path
    entries: list[Entry] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    others: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    lacks_val: bool = False
    warnings: list[str] = field(default_factory=list)


def read_folder(data: Path, exclude: Sequence[str] = (), to_train: bool = True) -> Listing:
    """List DATA/train/<class>/…, DATA/val/…, DATA/test/… or, without these, DATA/<class>/….

    "valid" and "validation" count as "val"; letter case does not matter. Without a val folder the
    entries of train carry no split: it is to be drawn, as for DATA/<class>/….
    exclude: class names to leave out. to_train: a train folder is needed where there are others.
    Raises UserError where there are no class folders, or where the layout is ambiguous.
    """
    _require_folder(data)
    listing = Listing(root=Path(os.path.abspath(data)))
    top = walk(data, nested=False)
    splits = _split_folders(data, top.folders, to_train)
    if not splits:
        _note_loose(listing, "", top)
        _read_classes(listing, "", "", exclude)
        _require_classes(data, top, listing)
        return listing
    _note_loose(listing, "", top)
    _note_beside(listing, [name for name in top.folders if name not in splits.values()])
    listing.lacks_val = "val" not in splits
    for split, name in splits.items():
        inside = walk(data / name, nested=False)
        _note_loose(listing, f"{name}/", inside)
        drawn = split == "train" and listing.lacks_val
        _read_classes(listing, f"{name}/", "" if drawn else split, exclude)
        if split == "train":
            _require_classes(data / name, inside, listing)
    return listing


def _require_folder(data: Path) -> None:
    name = shown(str(data))
    if not os.path.lexists(data):
        near = _existing_part(data)
        raise usage_error(
            f"{name} does not exist", near, "give a folder of pictures, or --manifest FILE"
        )
    if not data.is_dir():
        table = data.suffix.lower() in (".csv", ".tsv")
        remedy = (
            f"give it as --manifest {name}" if table else "give the folder that holds the classes"
        )
        raise usage_error(f"{name} is a file, not a folder", remedy=remedy)


def _existing_part(data: Path) -> str:
    """Say how far a path exists, where its parent does not either."""
    parent = next((folder for folder in data.absolute().parents if folder.is_dir()), None)
    if parent is None or parent == data.absolute().parent:
        return ""
    return f"the path exists up to {shown(str(parent))}"


def _split_folders(data: Path, folders: Sequence[str], to_train: bool) -> dict[str, str]:
    """Return split to folder name; nothing where the folders are classes."""
    found: dict[str, list[str]] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [name for name in folders if name.casefold() in names]
        if matches:
            found[split] = matches
    rest = len(folders) - sum(map(len, found.values()))
    if "train" not in found and (to_train or not found or rest):
        if found and rest == 0:
            raise UserError(
                f"{shown(str(data))} has {' and '.join(found)} but no train folder",
                remedy="add a train folder, or give a folder that holds one folder for each class",
            )
        return {}
    # A class may be called "train" (beside "bus" and "car"): then its folder holds pictures only.
    holds_classes = any(walk(data / n, nested=False).folders for n in found.get("train", ()))
    if rest and "val" not in found and not holds_classes:
        return {}
    doubled = [names for names in found.values() if len(names) > 1]
    if doubled:
        same = " and ".join(f"{name}/" for name in doubled[0])
        raise UserError(
            f"{shown(str(data))} holds {same}, which mean the same",
            remedy="rename or remove one of them",
        )
    return {split: names[0] for split, names in found.items()}


def _read_classes(listing: Listing, prefix: str, split: str, exclude: Sequence[str]) -> None:
    """Add every class folder in `prefix` to the listing."""
    folder = listing.root / prefix
    names = walk(folder, nested=False).folders
    invalid = [ascii(name) for name in names if not is_valid_text(name) or not class_name(name)]
    if invalid:
        raise UserError(
            f"{count(len(invalid), 'class folder')} whose name is blank, or not valid UTF-8",
            listed(invalid),
            "rename them, so that the classes can be written and shown",
        )
    repeated, merged = [], []
    first: dict[str, str] = {}
    for name in names:
        label = class_name(name)
        if first.setdefault(label, name) != name:
            merged.append(f"{prefix + first[label]!a} and {prefix + name!a}")
        if label in exclude:
            listing.excluded.add(label)
            continue
        files = walk(folder / name)
        if prefix == "" or split in ("", "train"):
            listing.classes[label] = prefix + name
        listing.others[label, split] = listing.others.get((label, split), Counter()) + files.others
        repeated += [f"{prefix}{name}/{path}" for path in files.repeated]
        for path in files.images:
            listing.entries.append(_entry(f"{prefix}{name}/{path}", label, split))
        for path, kind in files.unsupported.items():
            entry = Entry(f"{prefix}{name}/{path}", label, split, unsupported(kind))
            listing.entries.append(entry)
    if merged:
        listing.warnings.append(
            f"{count(len(merged), 'class folder')} called like another but for blanks or how "
            f"letters are composed (first: {merged[0]}): they are read as one class; if they mean "
            "different ones, rename one of them"
        )
    if repeated:
        listing.warnings.append(
            f"{count(len(repeated), 'link')} to folders that are read already (first: "
            f"{shown(repeated[0])}): each folder is read once in a class"
        )


def _entry(path: str, label: str, split: str) -> Entry:
    valid = is_valid_text(path)
    return Entry(path, label, split, "" if valid else "the name is not valid UTF-8")


def _note_loose(listing: Listing, prefix: str, found: FolderFiles) -> None:
    """Warn of pictures that lie beside the class folders."""
    if found.images and found.folders:
        first = shown(prefix + found.images[0])
        listing.warnings.append(
            f"{count(len(found.images), 'picture')} outside of any class folder (first: {first}) "
            "left out: move them into the folder of their class"
        )


def _note_beside(listing: Listing, names: Sequence[str]) -> None:
    """Warn of folders beside train, val and test that hold pictures, if not by their name."""
    unexpected = [name for name in natural_sorted(names) if name.casefold() not in _UNLABELED]
    used = [name for name in unexpected if walk(listing.root / name).images]
    if used:
        listing.warnings.append(
            f"not used, as beside train: {', '.join(f'{shown(name)}/' for name in used[:5])}"
        )


def _require_classes(folder: Path, found: FolderFiles, listing: Listing) -> None:
    """Raise where a folder has no class folders at all."""
    if listing.classes:
        return
    name = shown(str(folder))
    layout = "one folder for each class, as in birds/heron/1.jpg, or --manifest FILE"
    if found.folders:
        raise UserError(f"{name} has no classes left", remedy="exclude fewer of them")
    if found.images:
        what = f"{name} holds {count(len(found.images), 'picture')} but no class folders"
        raise UserError(what, remedy=f"arrange them as {layout}")
    if found.unsupported or found.others:
        files = len(found.unsupported) + sum(found.others.values())
        what = f"{name} holds no pictures and no class folders"
        raise UserError(what, f"{count(files, 'file')} found", f"give a folder with {layout}")
    raise UserError(f"{name} is empty", remedy=f"give a folder with {layout}")
