"""Standard streams that may be closed, full or gone: work goes on, and what was lost is noted.

A job that nobody can read any more (cron with `>&-`, a full disk, a dropped connection) is still
worth finishing. Whether its output was what it was run for is asked at its end.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any


class Lasting(io.FileIO):
    """A descriptor to write to. gone: it was closed. lost: the first error, kept to itself."""

    def __init__(self, number: int, gone: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.gone = gone
        self.lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write as much as goes; what cannot be written counts as written."""
        try:
            if self.gone:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def outlast() -> None:
    """Let standard output and error outlast whoever reads them; leave streams that are replaced.

    A closed descriptor gets /dev/null: else the next file that is opened, a checkpoint, would take
    its number, and what libraries print would go there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is getattr(sys, f"__{name}__"):
            setattr(sys, name, lasting(number, old))


def lasting(number: int, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """Return a stream in the place of `old`, which is None where its descriptor was closed."""
    raw = io.BufferedWriter(Lasting(number, gone=old is None))
    if old is None:
        return io.TextIOWrapper(raw, "utf-8", "backslashreplace")
    with suppress(OSError):
        old.flush()
    return io.TextIOWrapper(
        raw,
        old.encoding,
        old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def lost_output() -> OSError | None:
    """Return why standard output did not take all that was printed; None where it did."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, Lasting) else None
