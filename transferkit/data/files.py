"""Find picture files in a folder and everything below it."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.data.formats import begins_as_picture, picture_kind
from transferkit.data.names import natural_sorted, shown
from transferkit.errors import UserError

_MOST_SNIFFED = 8
"""Of the files with one unknown suffix: if none of them is a picture, no other is looked at."""

# Written by operating systems, network drives and programs, never by the user.
_LITTER = re.compile(
    r"""thumbs(_\w+)?\.db(:encryptable)?|ehthumbs\w*\.db|desktop\.ini|icon\r|__macosx|__pycache__
    |system[ ]volume[ ]information|lost\+found|lost\.dir|found\.\d{3}|recycle[rd]|recycle\.bin
    |network[ ]trash[ ]folder|temporary[ ]items|thevolumesettingsfolder|_gsdata_|_sync_hq
    |.*\.(lrdata|photoslibrary|aplibrary)
    |[@#$~%][@#$~%_.]*(eadir|tmp|temp|thumb(nail)?s?|deleted|winreagent|extend|avg
    |share(d)?bin|sharedsnapshot|(recently[-_])?snapshots?|recycled?([ .]?bin)?|trash([-_ ]?\w+)?)
    |~\$.*""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass
class FolderFiles:
    """What lies in a folder; paths are relative to it, with forward slashes.

    images: files with the suffix of a readable format, and those that begin as pictures do.
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

    @property
    def pictures(self) -> list[str]:
        """All pictures, also those that cannot be read here, in natural order."""
        return natural_sorted([*self.images, *self.unsupported])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's, a drive's or an editor's, not the user's."""
    return name.startswith(".") or _LITTER.fullmatch(name) is not None


def is_picture(file: Path) -> bool:
    """Whether a file is a picture by its suffix or, where that says nothing, by its first bytes."""
    return picture_kind(file.name) is not None or begins_as_picture(file)


def walk(folder: Path, *, nested: bool = True) -> FolderFiles:
    """Return the files in a folder (and, when `nested`, below it) in natural order.

    Links to folders are followed, each real folder once and none back upwards, so that loops end.
    Hidden files and folders are skipped. Raises UserError for a folder that may not be read.
    """
    listing = FolderFiles()
    unknown: dict[str, list[str]] = {}
    # A link back to a folder above would read the other classes as part of this one.
    seen = {_identity(above) for above in (folder, *folder.absolute().parents)}
    pending = [""]
    for inside in pending:  # grows on the way
        folders, files = _entries(folder / inside)
        prefix = f"{inside}/" if inside else ""
        kinds = {name: picture_kind(name) for name in files}
        stems = {os.path.splitext(name)[0] for name, kind in kinds.items() if kind is not None}
        for name, kind in kinds.items():
            suffix = os.path.splitext(name)[1].lower()
            if kind:
                listing.unsupported[prefix + name] = kind
            elif kind == "":
                listing.images.append(prefix + name)
            elif _is_copy(name, stems):
                listing.others[suffix] += 1
            else:
                unknown.setdefault(suffix, []).append(prefix + name)
        if not inside:
            listing.folders = natural_sorted(folders)
        for name in natural_sorted(folders) if nested else ():
            identity = _identity(folder / inside / name)
            (listing.repeated if identity in seen else pending).append(prefix + name)
            seen.add(identity)
    for suffix, paths in unknown.items():
        first = [path for path in paths[:_MOST_SNIFFED] if begins_as_picture(folder / path)]
        rest = paths[_MOST_SNIFFED:] if first else ()
        pictures = [*first, *(path for path in rest if begins_as_picture(folder / path))]
        listing.images += pictures
        listing.others += Counter({suffix: len(paths) - len(pictures)})
    listing.images = natural_sorted(listing.images)
    return listing


def _is_copy(name: str, stems: Iterable[str]) -> bool:
    """Whether a name is a picture's, made longer: 1.jpg_original or 1.jpg.bak beside 1.jpg."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in stems for end in range(1, len(parts) + 1))


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
