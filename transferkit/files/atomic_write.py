"""Files that are either wholly there or as they were before."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from transferkit.errors import UserError, usage_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_DPI = 144


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path`.

    If anything fails, also an interrupt, the old file is intact and the temporary one is gone.
    Raises OSError, and whatever `write` raises.
    """
    # a fixed name: what a killed process left behind is overwritten by the next write
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def png_of(figure: "Figure") -> Callable[[BinaryIO], object]:
    """Return what draws a figure as a PNG into a file, for `write_atomically`."""
    metadata = {"Software": "transferkit"}
    return lambda file: figure.savefig(file, format="png", dpi=PLOT_DPI, metadata=metadata)


def disk_error(folder: Path, error: OSError) -> UserError:
    """Return what a person is told when `folder` cannot be written."""
    if error.errno == errno.ENAMETOOLONG:
        return usage_error(f"cannot write to {str(folder)[:80]}: a name or the path is too long")
    what = f"cannot write to {folder}: {error.strerror or error}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return UserError(what, remedy="give the path of a file in a folder that exists")
    return UserError(
        what,
        where="what was written there before is intact",
        remedy="free some space, or give yourself the right to write there, and go on from there",
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the system can (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
