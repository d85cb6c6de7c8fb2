"""Open a picture's file, on disk or inside of a shard; let Pillow decode without its own limits."""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from transferkit.data.tar_members import read_member

MOST_BYTES = 2_000_000_000
"""Of a file: 100 million pixels of four 32-bit floats, uncompressed, are 1.6 GB."""

OpenFile = io.BufferedReader | io.BytesIO
"""A file on disk, or the content of one in a shard."""


class DecodeError(Exception):
    """A file that cannot be used as a picture; the text is a short reason such as "truncated"."""


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """Open a regular file that is not empty; nothing else is opened, as a pipe would hang.

    A path may lead into a shard. Raises DecodeError.
    """
    try:
        file = _open_regular(path)
    except FileNotFoundError as error:
        raise DecodeError("broken link" if os.path.islink(path) else "missing") from error
    except PermissionError as error:
        raise DecodeError("permission denied") from error
    except (OSError, ValueError) as error:
        raise DecodeError(f"cannot be opened ({first_words(error)})") from error
    with file:
        yield file


def _open_regular(path: Path) -> OpenFile:
    try:
        status = os.stat(path)
    except NotADirectoryError:  # a shard is a file, with files inside
        content = read_member(path)
        if not content:
            raise DecodeError("empty file") from None
        return io.BytesIO(content)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("not a regular file")
    if status.st_size == 0:
        raise DecodeError("empty file")
    if status.st_size > MOST_BYTES:
        raise DecodeError(f"{status.st_size:,} bytes, more than the limit of {MOST_BYTES:,}")
    return open(path, "rb")


def first_words(error: Exception) -> str:
    """Return the start of an error's message, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:80] or type(error).__name__


class _Unlimited:
    """Silences Pillow's warnings about damaged files, and lifts its own limit of pixels, while at
    least one thread decodes.

    `warnings.catch_warnings` saves and restores one list for the whole process, so threads that
    overlap would restore each other's: only the first one in saves, only the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


pillow_unlimited = _Unlimited()
