"""Decoded pictures kept on disk, so that what is seen in every epoch is decoded once."""

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SHARE_OF_DISK = 0.25
"""Of the free space, at most so much is filled; further pictures are decoded each time."""


class KeptPictures:
    """A byte cache of RGB pictures in a file that has no name and vanishes with the process.

    Plain reads rather than a memory map: a full disk is then an error of one write, not a signal,
    and what is read counts as the system's cache, not as memory of this process.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int | None = None) -> None:
        """Open the file in `folder`, or where the system keeps temporary files; limit its size."""
        with tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        room = SHARE_OF_DISK * shutil.disk_usage(folder or tempfile.gettempdir()).free
        self._room = int(room if most_bytes is None else min(room, most_bytes))
        self._end = 0
        self._places: dict[object, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: object, decode: Callable[[], Image.Image]) -> Image.Image:
        """Return the picture kept under a key; the first time, or without room, decode it."""
        place = self._places.get(key)
        if place is None:
            image = decode()
            self._keep(key, image)
            return image
        offset, width, height = place
        pixels = os.pread(self._descriptor, 3 * width * height, offset)
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    def _keep(self, key: object, image: Image.Image) -> None:
        pixels = np.asarray(image).tobytes()  # (H, W, 3)
        with self._lock:
            offset = self._end
            if offset + len(pixels) > self._room:
                return
            self._end += len(pixels)
        try:
            done = 0
            while done < len(pixels):
                done += os.pwrite(self._descriptor, pixels[done:], offset + done)
        except OSError:  # full: what is kept so far stays of use
            self._room = 0
            return
        self._places[key] = (offset, image.width, image.height)
