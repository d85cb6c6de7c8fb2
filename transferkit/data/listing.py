"""Read the folder layouts: which file belongs to which class and split, before any is opened."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.data.files import FolderFiles, walk
from transferkit.data.formats import picture_kind, unsupported
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
    """One listed picture.

    path: relative to the root, or absolute. problem: why it is unusable. group: as a table has it.
    """

    path: str
    label: str
    split: str
    problem: str = ""
    group: str = ""


@dataclass
class Listing:
    """What a folder or a manifest lists.

    entries: in no particular order; `split` is "" where a split is still to be drawn.
    classes: every class of the training part, also one that lists no picture, and its folder
        relative to the root ("" in a manifest).
    excluded: the classes that were left out on request.
    others: per class and split, the suffixes of its files that are no pictures.
    lacks_val: there are splits, but none to validate on.
    columns: of a manifest, in lower case.
    warnings: sentences for the user.
    """

    root: Path
    entries: list[Entry] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    others: dict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    lacks_val: bool = False
    columns: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


def name_problem(path: str) -> str:
    """Return why a picture cannot be used, as far as its name says, or ""."""
    if not is_valid_text(path):
        return "the name is not valid UTF-8"
    kind = picture_kind(path)
    return unsupported(kind) if kind else ""


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
    _warn_of_loose(listing, "", top)
    if not splits:
        _read_classes(listing, "", "", exclude)
        _require_classes(data, top, listing)
        return listing
    _warn_of_folders(listing, [name for name in top.folders if name not in splits.values()])
    listing.lacks_val = "val" not in splits
    for split, name in splits.items():
        inside = walk(data / name, nested=False)
        _warn_of_loose(listing, f"{name}/", inside)
        drawn = split == "train" and listing.lacks_val
        _read_classes(listing, f"{name}/", "" if drawn else split, exclude)
        if split == "train":
            _require_classes(data / name, inside, listing)
    return listing


def _require_folder(data: Path) -> None:
    name = shown(str(data))
    if not os.path.lexists(data):
        above = data.absolute().parents
        near = next((folder for folder in above if folder.is_dir()), above[0])
        where = "" if near == above[0] else f"the path exists up to {shown(str(near))}"
        remedy = "give a folder of pictures, or --manifest FILE"
        raise usage_error(f"{name} does not exist", where, remedy)
    if not data.is_dir():
        remedy = "give the folder that holds the classes"
        if data.suffix.lower() in (".csv", ".tsv"):
            remedy = f"give it as --manifest {name}"
        raise usage_error(f"{name} is a file, not a folder", remedy=remedy)


def _split_folders(data: Path, folders: Sequence[str], to_train: bool) -> dict[str, str]:
    """Return split to folder name; nothing where the folders are classes."""
    matches = {
        split: [name for name in folders if name.casefold() in names]
        for split, names in SPLIT_NAMES.items()
    }
    matches = {split: names for split, names in matches.items() if names}
    rest = len(folders) - sum(map(len, matches.values()))
    if "train" not in matches and (to_train or not matches or rest):
        if matches and rest == 0:
            raise UserError(
                f"{shown(str(data))} has {' and '.join(matches)} but no train folder",
                remedy="add a train folder, or give a folder that holds one folder for each class",
            )
        return {}
    # A class may be called "train" (beside "bus" and "car"): then its folder holds pictures only.
    holds_classes = any(walk(data / n, nested=False).folders for n in matches.get("train", ()))
    if rest and "val" not in matches and not holds_classes:
        return {}
    for names in matches.values():
        if len(names) > 1:
            same = " and ".join(f"{name}/" for name in names)
            what = f"{shown(str(data))} holds {same}, which mean the same"
            raise UserError(what, remedy="rename or remove one of them")
    return {split: names[0] for split, names in matches.items()}


def _read_classes(listing: Listing, prefix: str, split: str, exclude: Sequence[str]) -> None:
    """Add every class folder in `prefix` to the listing."""
    folder = listing.root / prefix
    names = walk(folder, nested=False).folders
    invalid = [ascii(name) for name in names if not is_valid_text(name) or not class_name(name)]
    if invalid:
        what = f"{count(len(invalid), 'class folder')} whose name is blank, or not valid UTF-8"
        remedy = "rename them, so that the classes can be written and shown"
        raise UserError(what, listed(invalid), remedy)
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
        listing.others[label, split] += files.others
        repeated += [f"{prefix}{name}/{path}" for path in files.repeated]
        for path in (*files.images, *files.unsupported):
            path = f"{prefix}{name}/{path}"
            listing.entries.append(Entry(path, label, split, name_problem(path)))
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


def _warn_of_loose(listing: Listing, prefix: str, files: FolderFiles) -> None:
    """Warn of pictures that lie beside the class folders."""
    if files.images and files.folders:
        first = shown(prefix + files.images[0])
        listing.warnings.append(
            f"{count(len(files.images), 'picture')} outside of any class folder (first: {first}) "
            "left out: move them into the folder of their class"
        )


def _warn_of_folders(listing: Listing, names: Sequence[str]) -> None:
    """Warn of folders beside train, val and test that hold pictures, unless called unlabeled."""
    unexpected = [name for name in natural_sorted(names) if name.casefold() not in _UNLABELED]
    used = [f"{shown(name)}/" for name in unexpected if walk(listing.root / name).images]
    if used:
        them = "they lie" if len(used) > 1 else "it lies"
        listing.warnings.append(f"ignored, because {them} beside train/: {', '.join(used[:5])}")


def _require_classes(folder: Path, files: FolderFiles, listing: Listing) -> None:
    """Raise where a folder has no class folders at all."""
    if listing.classes:
        return
    name = shown(str(folder))
    layout = "one folder for each class, as in birds/heron/1.jpg, or --manifest FILE"
    if files.folders:
        raise UserError(f"{name} has no classes left", remedy="exclude fewer of them")
    if files.images:
        what = f"{name} holds {count(len(files.images), 'picture')} but no class folders"
        raise UserError(what, remedy=f"arrange them as {layout}")
    number = len(files.unsupported) + files.others.total()
    what = f"{name} holds no pictures and no class folders" if number else f"{name} is empty"
    where = f"{count(number, 'file')} found" if number else ""
    raise UserError(what, where, f"give a folder with {layout}")
