"""One process at a time writes a run, or another output."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transferkit.errors import UserError
from transferkit.files.atomic_write import open_regular

try:
    import fcntl
except ImportError:  # Windows: two processes on one output are not told apart there
    fcntl = None  # type: ignore[assignment]


class BusyError(UserError):
    """Another process holds what was to be held."""


@contextmanager
def only_process(output: Path) -> Iterator[None]:
    """Hold a folder, or a file that is to be written, for as long as the context lasts.

    Nothing is written for a folder; for a file, an empty `.NAME.lock` lies beside it meanwhile. The
    operating system lets go when the process ends, however it ends. Where the file system knows no
    locks, nothing is held. Raises BusyError when another process has it, and OSError.
    """
    if fcntl is None:
        yield
        return
    is_folder = output.is_dir()
    lock = output if is_folder else output.with_name(f".{output.name}.lock")
    descriptor = os.open(lock, os.O_RDONLY) if is_folder else open_regular(lock, os.O_RDWR)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        except OSError:
            pass  # no locks on this file system
        try:  # the one before may have taken it away since it was opened
            held = held and os.path.samestat(os.fstat(descriptor), os.stat(lock))
        except FileNotFoundError:
            held = False
        if not held:
            raise BusyError(
                f"another process is working on {output}",
                "two processes would overwrite each other's files",
                "wait until it ends, or name another place",
            )
        try:
            yield
        finally:
            if not is_folder:
                lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def hold(held: ExitStack, *outputs: Path | None) -> None:
    """Keep other processes out of outputs until the stack is left; None stands for no output."""
    for output in outputs:
        if output is not None:
            held.enter_context(only_process(output))
