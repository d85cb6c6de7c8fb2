"""Find picture files in a folder and everything below it."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.data.decode import UNSUPPORTED_KINDS, image_suffixes
from transferkit.data.names import natural_sorted, shown
from transferkit.errors import UserError

_LITTER = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}


@dataclass
class FolderFiles:
    """What lies in a folder; paths are relative to it, with forward slashes.

    images: files with the suffix of a readable format.
    unsupported: path to kind ("HEIC") of pictures that cannot be read here.
    others: how many further files there are of each suffix ("" for none).
    folders: names of the direct subfolders.
    repeated: links to folders that had been read already; they are not followed again.
    """

    images: list[str] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is an operating system's or an editor's, not the user's."""
    return name.startswith(".") or name.casefold() in _LITTER


def picture_kind(name: str) -> str | None:
    """Return "" for a readable suffix, the kind of an unsupported picture, None for other files."""
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix in image_suffixes() else UNSUPPORTED_KINDS.get(suffix)


def walk(folder: Path, *, nested: bool = True) -> FolderFiles:
    """Return the files in a folder (and, when `nested`, below it) in natural order.

    Links to folders are followed, each real folder once and none back upwards, so that loops end.
    Hidden files and folders are skipped. Raises UserError for a folder that may not be read.
    """
    found = FolderFiles()
    pending = [""]
    # A link back to a folder above would read the other classes as part of this one.
    seen = {_identity(above) for above in (folder, *folder.absolute().parents)}
    while pending:
        inside = pending.pop(0)
        folders, files = _entries(folder / inside)
        prefix = f"{inside}/" if inside else ""
        for name in files:
            kind = picture_kind(name)
            if kind is None:
                found.others[os.path.splitext(name)[1].lower()] += 1
            elif kind:
                found.unsupported[prefix + name] = kind
            else:
                found.images.append(prefix + name)
        if not inside:
            found.folders = natural_sorted(folders)
        for name in natural_sorted(folders) if nested else ():
            identity = _identity(folder / inside / name)
            if identity in seen:
                found.repeated.append(prefix + name)
            else:
                seen.add(identity)
                pending.append(prefix + name)
    found.images = natural_sorted(found.images)
    return found


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the visible subfolders and of everything else in a folder."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise UserError(
            f"{shown(str(folder))} cannot be read: {(error.strerror or str(error)).lower()}",
            remedy="check the folder and its permissions",
        ) from error
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
