"""Pillow without its warnings and its limit of pixels, for as long as a thread decodes."""

import threading
import warnings

from PIL import Image


class Unlimited:
    """Silences what Pillow warns about damaged files, and lifts its own limit of pixels, while at
    least one thread decodes: `transferkit.data.decode` has its own.

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


pillow_unlimited = Unlimited()
