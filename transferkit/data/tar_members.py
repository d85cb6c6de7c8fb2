"""Files inside of a tar archive, found by its headers and read by offset; none is unpacked.

A member has the path of its archive and then its own, as if the archive were a folder:
shards/0000.tar/0001.jpg. Links, devices and folders are never followed or made.
"""

import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from transferkit.data.names import shown
from transferkit.errors import UserError

SUFFIX = ".tar"
MOST_BYTES = 1 << 30
"""No picture is that large; an archive may claim it to fill the memory."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REPAIR = "make it, or fetch it, again"
_PACK = "pack plain relative names: tar --create --file X.tar --directory FOLDER ."
# What the standard library's reader raises on headers that were made to harm.
_HEADER_ERRORS = (ArithmeticError, EOFError, LookupError, RuntimeError, ValueError)
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Member:
    """A member of an archive. name: relative, with forward slashes, without "." and "..".

    offset, size: bytes of its content in the archive. is_file: a plain file; not a link, a device,
    a folder or a file with holes.
    """

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool = False


def list_members(archive: Path) -> list[Member]:
    """Read an archive's headers, without its contents; return its members in their order.

    Raises UserError that names the archive, and the member, where it does not exist, is no tar
    archive or a compressed one, is cut short or damaged, or holds a name that leads outside or
    comes twice.
    """
    name = shown(str(archive))
    try:
        with open(archive, "rb") as file:
            start = file.read(6)
            for magic, kind in _COMPRESSED.items():
                if start.startswith(magic):
                    what = f"{name} is compressed ({kind}): single pictures cannot be read from it"
                    raise UserError(what, remedy="unpack it to a plain .tar")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = list(_members(tar, name))
                _check_end(file, tar.offset, os.fstat(file.fileno()).st_size, name)
            return members
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    except tarfile.TarError as error:
        if "unexpected end of data" in str(error):
            raise UserError(f"{name} is cut short", "a member ends after it", _REPAIR) from None
        raise UserError(f"{name} is not a tar archive: {error}", remedy=_REPAIR) from None
    except _HEADER_ERRORS as error:
        raise UserError(f"{name} is damaged: {str(error)[:100]}", remedy=_REPAIR) from None


def _members(tar: tarfile.TarFile, archive: str) -> Iterator[Member]:
    """Yield the members while their headers are read."""
    seen: set[str] = set()
    position = -1
    while (info := tar.next()) is not None:
        # They would be kept for links that are never followed.
        tar.members.clear()  # type: ignore[attr-defined]
        if info.size < 0 or tar.offset <= position:
            raise ValueError(f"header at byte {info.offset}")
        position = tar.offset
        parts = PurePosixPath(info.name).parts
        if info.name.startswith("/") or ".." in parts:
            what = f"{archive} holds a name that leads outside of it: {shown(info.name)}"
            raise UserError(what, remedy=_PACK)
        name = "/".join(parts)
        if info.isdir():
            yield Member(name, info.offset_data, 0, is_file=False, is_folder=True)
            continue
        if name in seen:
            remedy = "give every member a name of its own"
            raise UserError(f"{archive} holds {shown(name)} twice", remedy=remedy)
        seen.add(name)
        yield Member(name, info.offset_data, info.size, info.isreg() and not info.issparse())


def _check_end(file: BinaryIO, end: int, size: int, archive: str) -> None:
    """Raise where what follows the last member is not the end that archives have, zeros.

    The reader takes a damaged header, and a file cut between two members, for the end.
    """
    if end + tarfile.BLOCKSIZE > size:
        raise UserError(f"{archive} is cut short", "its end marker is missing", _REPAIR)
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise UserError(f"{archive} is damaged: header at byte {end:,}", remedy=_REPAIR)
    while rest := file.read(1 << 20):
        if any(rest):
            what = f"{archive} goes on after its end: it was joined of several archives"
            raise UserError(what, remedy="name them one by one")


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the files of an archive lie: 24 bytes for each, as there may be millions.

    hashes: (M,) of their names, ascending. offsets, sizes: (M,) bytes.
    """

    hashes: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def find(self, name: str) -> tuple[int, int] | None:
        """Return offset and size of a file, or None."""
        wanted = np.int64(hash(name))
        row = int(np.searchsorted(self.hashes, wanted))
        if row == len(self.hashes) or self.hashes[row] != wanted:
            return None
        return int(self.offsets[row]), int(self.sizes[row])


@cache
def _places(archive: Path, size: int, changed_ns: int) -> _Places:
    """Find the files of an archive; size and time of change tell its state."""
    files = [member for member in list_members(archive) if member.is_file]
    hashes = np.array([hash(member.name) for member in files], dtype=np.int64)
    order = np.argsort(hashes)
    offsets = np.array([member.offset for member in files], dtype=np.int64)
    sizes = np.array([member.size for member in files], dtype=np.int64)
    return _Places(hashes[order], offsets[order], sizes[order])


def archive_of(path: Path) -> Path | None:
    """Return the archive that a path leads into, if it leads into one."""
    inside = (folder for folder in path.parents if folder.suffix.lower() == SUFFIX)
    return next((folder for folder in inside if folder.is_file()), None)


def read_member(path: Path) -> bytes:
    """Return the content of a file in an archive: ARCHIVE/MEMBER.

    The headers of an archive are read once in a process, at the first call. Raises
    FileNotFoundError where there is no such file, OSError, and UserError as `list_members` does.
    """
    archive = archive_of(path)
    if archive is None:
        raise FileNotFoundError(f"no such file: {path}")
    with open(archive, "rb") as file:
        status = os.fstat(file.fileno())
        with _one_at_a_time:  # so that no two threads read the same headers
            places = _places(archive, status.st_size, status.st_mtime_ns)
        place = places.find(path.relative_to(archive).as_posix())
        if place is None:
            raise FileNotFoundError(f"no plain file in the archive: {path}")
        if place[1] > MOST_BYTES:
            raise OSError("larger than 1 GiB")
        file.seek(place[0])
        content = file.read(place[1])
    if len(content) < place[1]:
        raise OSError("the archive is cut short")
    return content
