"""Pictures from files to batches: threads that decode ahead, in order, and the order itself."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from transferkit.data.decode import NO_MEMORY, DecodeError, decode
from transferkit.data.kept import KeptPictures
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.reading import PLAIN, Reading
from transferkit.data.views import clean_view, shorter_side_px, varied_view
from transferkit.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

CLEAN = 0  # the number of a picture's clean view; varied ones are 1, 2, ...


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply a function to items in threads, yielding the results in order.

    Pillow's decoding and resizing release the interpreter lock, so threads use every core, need
    no start-up, copy nothing, and die with the process. At most a few results wait at any time.
    """
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class ViewMaker:
    """Turns (file, position in the data set, view numbers) into pixels.

    level, flip, seed: see `Augmentation`; reading: how files become RGB.
    """

    preprocessing: Preprocessing
    level: str = "none"
    flip: bool = True
    seed: int = 0
    reading: Reading = PLAIN

    def with_limit(self, max_pixels: int | None) -> "ViewMaker":
        """Return this maker with another limit of pixels, if one is given."""
        if max_pixels is None:
            return self
        return replace(self, reading=replace(self.reading, max_pixels=max_pixels))

    def views(
        self,
        path: Path,
        picture: int,
        numbers: Iterable[int],
        kept: KeptPictures | None = None,
    ) -> np.ndarray:
        """Decode a picture once and make the views with these numbers: (V, 3, H, W) uint8.

        picture: the picture's position in the data set; with the view's number and the seed it
        determines the view. kept: where decoded pictures wait for the next time, if anywhere.
        Raises UserError when the file can no longer be read.
        """
        try:
            return self._make(path, picture, tuple(numbers), kept)
        except (DecodeError, OSError) as error:
            raise UserError(
                f"{path} can no longer be read: {error}",
                "it was readable when the data set was scanned",
                "restore it and run again; what was finished is kept",
            ) from None

    def readable_views(self, path: Path, picture: int, numbers: Iterable[int]) -> np.ndarray:
        """Do as `views`, but raise DecodeError or OSError, whose text is the bare reason."""
        return self._make(path, picture, tuple(numbers), None)

    def _make(
        self, path: Path, picture: int, wanted: tuple[int, ...], kept: KeptPictures | None
    ) -> np.ndarray:
        level = "none" if set(wanted) == {CLEAN} else self.level
        needed_px = shorter_side_px(self.preprocessing, level)

        def read() -> Image.Image:
            return decode(path, self.reading, needed_px)

        try:
            image = read() if kept is None else kept.get((path, needed_px), read)
            return self._draw(image, picture, wanted)
        except MemoryError as error:
            raise DecodeError(NO_MEMORY) from error

    def _draw(self, image: Image.Image, picture: int, wanted: tuple[int, ...]) -> np.ndarray:
        """Make the wanted views of a decoded picture: (V, 3, H, W) uint8."""
        views = []
        for number in wanted:
            if number == CLEAN:
                views.append(clean_view(image, self.preprocessing))
            else:
                generator = np.random.default_rng([self.seed, picture, number])
                size = self.preprocessing
                views.append(varied_view(image, size, self.level, self.flip, generator))
        return np.stack(views)


def epoch_order(labels: np.ndarray, balance: str, seed: int, epoch: int) -> np.ndarray:
    """Return the positions (N,) that one epoch visits.

    balance "sampler" draws with replacement so that every class is equally likely; otherwise each
    position comes once, shuffled.
    """
    generator = np.random.default_rng([seed, epoch, 1])
    if balance != "sampler":
        return generator.permutation(len(labels))
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return generator.choice(len(labels), size=len(labels), p=weights / weights.sum())


def epoch_views(count: int, num_views: int | None, seed: int, epoch: int) -> np.ndarray:
    """Return the view number (N,) of every picture in one epoch, the epoch counted from 0.

    num_views: how many there are, the clean one included; every `num_views` epochs each picture
    shows each of its views once, in an order of its own. None: a new view in every epoch.
    """
    if num_views is None:
        return np.full(count, epoch + 1)
    generator = np.random.default_rng([seed, epoch // num_views, 2])
    orders = generator.random((count, num_views)).argsort(axis=1)
    return orders[:, epoch % num_views]
