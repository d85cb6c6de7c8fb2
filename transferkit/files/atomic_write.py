"""Files that are either wholly there or as they were before, and never behind a link of others."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from transferkit.errors import UserError, usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_DPI = 144


def write_atomically(path: Path, write: Callable[[BinaryIO], object], lasting: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path`.

    lasting: wait until the disk has it. If anything fails, also an interrupt, the old file is
    intact and the temporary one is gone. Raises OSError, UserError where another process writes
    the same file, and whatever `write` raises.
    """
    # a fixed name: what a killed process left behind goes with the next write
    temporary = path.with_name(f".{path.name}.tmp")
    file = open_draft(temporary)
    status = os.fstat(file.fileno())
    try:
        with file:
            write(file)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        if not _is(temporary, status):
            what, remedy = f"another process is writing {path}", "wait until it ends"
            raise UserError(what, "this one did not touch what it wrote", remedy)
        os.replace(temporary, path)
    except BaseException:
        if _is(temporary, status):
            temporary.unlink(missing_ok=True)
        raise
    if lasting:
        _sync_folder(path.parent)


def open_draft(path: Path) -> BinaryIO:
    """Open a new file to write. What a killed process left there is removed, never opened.

    In a shared folder it may be a link to any file, or a pipe that nobody reads. Raises OSError.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def open_regular(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file, made where it is missing unless `flags` only read.

    Raises OSError; ELOOP where `path` is a link or anything else, such as a pipe.
    """
    safe: int = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    make = os.O_CREAT if flags & (os.O_WRONLY | os.O_RDWR) else 0
    try:
        descriptor = os.open(path, flags | safe | make, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads, a socket
            raise _link(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _link(path)
    return descriptor


def open_to_add(path: Path) -> BinaryIO:
    """Open a file to write at its end, as `open_regular` does."""
    return os.fdopen(open_regular(path, os.O_WRONLY | os.O_APPEND), "ab")


def make_inside(top: Path, folder: Path) -> None:
    """Make `folder` inside of `top`, which may be a link that somebody chose; nothing below it may.

    Raises OSError; ELOOP for a link.
    """
    place = top
    for name in folder.relative_to(top).parts:
        place = place / name
        if place.is_symlink():
            raise _link(place)
        place.mkdir(exist_ok=True)


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, f"{path} is a link, or no regular file")


def _is(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), status)
    except OSError:
        return False


def png_of(figure: "Figure") -> Callable[[BinaryIO], object]:
    """Return what draws a figure as a PNG into a file, for `write_atomically`."""
    metadata = {"Software": "transferkit"}
    return lambda file: figure.savefig(file, format="png", dpi=PLOT_DPI, metadata=metadata)


def require_png(path: Path) -> Path:
    """Return the path of a plot. Raises a usage error where its name says something else."""
    if path.suffix.lower() != ".png":
        raise usage_error(f"--output {path}: the name must end in .png")
    return path


def write_plot(path: Path, figure: "Figure") -> None:
    """Draw a figure as a PNG. Raises UserError where it cannot be written."""
    try:
        write_atomically(path, png_of(figure))
    except OSError as error:
        raise disk_error(path.parent, error) from error


def disk_error(folder: Path, error: OSError) -> UserError:
    """Return the error for a `folder` that cannot be written."""
    if error.errno == errno.ENAMETOOLONG:
        return usage_error(f"cannot write to {str(folder)[:80]}: a name or the path is too long")
    what = f"cannot write to {folder}: {error.strerror or error}"
    if error.errno == errno.ELOOP:
        return UserError(what, "what lies behind it may belong to others", "remove it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return UserError(what, remedy="give the path of a file in a folder that exists")
    remedy = "free some space, or give yourself the right to write there, and go on from there"
    return UserError(what, "what was written there before is intact", remedy)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
