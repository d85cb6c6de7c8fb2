"""One process at a time writes a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transferkit.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes on one run are not told apart there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_process(run: Path) -> Iterator[None]:
    """Hold a run's folder for as long as the context lasts; nothing is written for it.

    The operating system lets go of it when the process ends, however it ends. Where the file
    system knows no locks, nothing is held. Raises UserError when another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is working on {run}",
                "two processes would overwrite each other's checkpoints",
                "wait until it ends, or start a new run with another --out",
            ) from None
        except OSError:
            pass  # no locks on this file system
        yield
    finally:
        os.close(descriptor)
