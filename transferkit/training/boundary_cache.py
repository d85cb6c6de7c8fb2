"""Activations at the frozen boundary, kept on disk: computed once, read in every epoch.

A cache is a folder named by a hash of all that its numbers depend on (`cache_key`), holding one
flat file of equally sized rows, their checksums, and a small JSON file that says how many are
complete, so that an interrupted fill goes on where it ended, and a damaged one where the damage is.
"""

import bisect
import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.errors import UserError
from transferkit.files.atomic_write import (
    make_inside,
    open_regular,
    open_to_add,
    write_atomically,
)
from transferkit.files.foreign_files import read_text

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two runs should not share a cache folder there
    fcntl = None  # type: ignore[assignment]

FORMAT = 3
FORGET_BYTES = 64 * 2**20
"""Pages read through the map count as resident; they are handed back after this many bytes."""


def cache_key(parts: Mapping[str, Any]) -> str:
    """Hash everything that the activations depend on into a folder name."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors: names, shapes, types and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class BoundaryCache:
    """Rows of activations in a memory-mapped file. Use as a context manager, or call `close`.

    shape: of one row, e.g. (C, H, W) or (D,). dtype: "float16" or "float32" on disk.
    """

    def __init__(self, folder: Path, num_rows: int, shape: tuple[int, ...], dtype: str) -> None:
        self.folder = folder
        self.num_rows = num_rows
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._touched = 0
        self._map: mmap.mmap | None = None
        self._rows: np.ndarray | None = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_inside(folder.parent, folder)
            self._file = open_regular(folder / "rows.bin", os.O_RDWR)
            os.truncate(self._file, self.num_rows * self.row_bytes)
            self._sums = open_regular(folder / "sums.bin", os.O_RDWR)
            os.utime(folder)  # the least recently opened cache is the first to make room
            self._lock = open_to_add(folder / "lock")
        except OSError as error:
            raise cache_error(folder, error) from None
        if fcntl:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # wait for another run that fills this cache
        self.rows_done = self._read_done()
        if fcntl and not self.complete:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.rows_done = self._read_done()  # another run may have gone on in between
            if self.complete:
                fcntl.flock(self._lock, fcntl.LOCK_SH)

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self.rows_done == self.num_rows

    @property
    def nbytes(self) -> int:
        """Size of all rows on disk."""
        return self.num_rows * self.row_bytes

    @property
    def _layout(self) -> dict[str, Any]:
        """What `state.json` says of the rows, beside how many are done."""
        return {"num_rows": self.num_rows, "shape": list(self.shape), "dtype": str(self.dtype)}

    def _read_done(self) -> int:
        try:
            state = json.loads(read_text(self.folder / "state.json"))
        except (OSError, ValueError):
            return 0
        if not isinstance(state, dict) or state | self._layout != state:
            return 0
        done = state.get("rows_done")
        if not isinstance(done, int) or not 0 <= done <= self.num_rows:
            return 0
        return self._intact(done)

    def _intact(self, rows_done: int) -> int:
        """Return how many of the first rows have the bytes that were written."""
        data = os.pread(self._sums, 4 * rows_done, 0)
        sums = np.frombuffer(data, np.uint32, len(data) // 4)
        for row, expected in enumerate(sums):
            if zlib.crc32(os.pread(self._file, self.row_bytes, row * self.row_bytes)) != expected:
                return row
        return len(sums)

    def forget_after(self, starts: Sequence[int]) -> int:
        """Forget the rows of an unfinished batch; return the number of the batch to compute next.

        starts: (B,) the first row of every batch. A damaged row may lie within one; its batch is
        computed as a whole, so that it gives the same bits again.
        """
        if self.complete:
            return len(starts)
        batch = bisect.bisect_right(starts, self.rows_done) - 1
        self.rows_done = starts[batch]
        return batch

    def append(self, rows: Tensor) -> None:
        """Write the next rows (n, *shape) and record them as done.

        Written by a system call and not through the map, where a full disk would kill the process.
        Raises UserError for values that the type on disk cannot hold.
        """
        with np.errstate(over="ignore"):
            values = rows.numpy().astype(self.dtype, copy=False)
        if not np.isfinite(values).all():
            raise unfit_values(rows, str(self.dtype))
        sums = np.array([zlib.crc32(row.tobytes()) for row in values], np.uint32)
        try:
            write_at(self._file, values.tobytes(), self.rows_done * self.row_bytes)
            write_at(self._sums, sums.tobytes(), self.rows_done * sums.itemsize)
            self.rows_done += len(rows)
            if self.complete:
                os.fsync(self._file)
            text = json.dumps({"rows_done": self.rows_done, **self._layout}).encode()
            write_atomically(self.folder / "state.json", lambda f: f.write(text), lasting=False)
        except OSError as error:
            raise cache_error(self.folder, error) from None
        if fcntl and self.complete:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the given rows (n, *shape) as float32."""
        if self._rows is None:
            self._map = mmap.mmap(self._file, self.nbytes, prot=mmap.PROT_READ)
            self._rows = np.frombuffer(self._map, self.dtype).reshape(self.num_rows, *self.shape)
        batch = torch.from_numpy(self._rows[rows].astype(np.float32))
        self._touched += len(rows) * self.row_bytes
        if self._touched > FORGET_BYTES and self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return batch

    def close(self) -> None:
        """Let go of the file and the lock."""
        self._rows = None
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None
        for descriptor in (self._file, self._sums):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._sums = -1
        self._lock.close()

    def __enter__(self) -> "BoundaryCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of the data at an offset of a file. Raises OSError."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


@dataclass(frozen=True)
class CacheParts:
    """The caches of several processes, read as one. starts: (P + 1,) the first row of each part."""

    parts: Sequence[BoundaryCache]
    starts: Sequence[int]

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return self.starts[-1]

    def read(self, rows: np.ndarray) -> Tensor:
        """Return the given rows (n, *shape) as float32."""
        batch = torch.empty(len(rows), *self.parts[0].shape)
        for part, (start, stop) in zip(self.parts, pairwise(self.starts), strict=True):
            here = np.flatnonzero((rows >= start) & (rows < stop))
            if len(here):
                batch[torch.from_numpy(here)] = part.read(rows[here] - start)
        return batch


def part_name(key: str, part: int, parts: int) -> str:
    """Return the folder of one of so many parts of the cache under a key."""
    return key if parts == 1 else f"{key}-{part + 1}-of-{parts}"


def unfit_values(rows: Tensor, dtype: str) -> UserError:
    """Say that activations are no numbers, or too large for the cache's type."""
    if not rows.isfinite().all():
        return UserError("the frozen blocks give values that are not numbers", "", "other weights?")
    return UserError(
        f"the frozen blocks give values up to {rows.abs().max():.0f}, too large for {dtype}",
        "",
        "keep them in full precision: --cache-dtype float32",
    )


def cache_error(folder: Path, error: OSError) -> UserError:
    """Say what went wrong with a cache folder, and what to do."""
    what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return UserError(
        f"cannot write the cache in {folder}: {what}",
        "what was finished is kept",
        "free space there, choose another place with --cache-dir, or train without: --no-cache",
    )


def make_room(root: Path, needed: int, budget: int, keep: frozenset[str] = frozenset()) -> str:
    """Remove least recently used caches under `root` until `needed` bytes fit the budget.

    keep: names of caches that the needed bytes are for: they stay, and what they take is there
    already. A cache that another process holds stays too. Returns why it does not fit, or "".
    Raises UserError for a folder that cannot be looked into.
    """
    if needed > budget:
        return f"the cache would take {needed / 1e9:.2f} GB of the {budget / 1e9:.2f} GB allowed"
    try:
        folders = [f for f in root.glob("*/") if (f / "rows.bin").exists()]
        sizes = {f: (f / "rows.bin").stat().st_blocks * 512 for f in folders}
        there = sum(sizes.pop(folder) for folder in folders if folder.name in keep)
        for folder in sorted(sizes, key=lambda f: f.stat().st_mtime):
            if sum(sizes.values()) + needed <= budget:
                break
            if remove_unused(folder):
                del sizes[folder]
        existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise cache_error(root, error) from None
    if needed - there > free * 0.9:
        return f"the cache would take {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB"
    return ""


def remove_unused(folder: Path) -> bool:
    """Delete a cache unless another process holds its lock. True when it is gone."""
    with contextlib.suppress(OSError), open_to_add(folder / "lock") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
        return True
    return False
