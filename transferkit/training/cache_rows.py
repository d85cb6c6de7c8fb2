"""Which row of a cache holds which view of which picture."""

from dataclasses import dataclass

import numpy as np

from transferkit.data.loader import CLEAN


@dataclass(frozen=True)
class CacheRows:
    """The order of a cache's rows, for T training and V validation pictures and P parts.

    A part is what one process computes: whole pictures, of which the training pictures come first.
    It begins with the clean view of each, so that training and validation can begin on these; the
    varied views of the training pictures follow, picture by picture.
    num_views: of a training picture, the clean one included; a validation picture has that one.
    """

    num_train: int
    num_views: int
    num_val: int
    parts: int = 1

    def ends(self) -> list[int]:
        """Return the first picture (P + 1,) of each part: 0 to T - 1 train, the others validate."""
        count = self.num_train + self.num_val
        return [count * part // self.parts for part in range(self.parts + 1)]

    def starts(self) -> list[int]:
        """Return the first row (P + 1,) of each part."""
        varied = self.num_views - 1
        return [end + min(end, self.num_train) * varied for end in self.ends()]

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return self.starts()[-1]

    def num_clean(self, part: int) -> int:
        """Return how many of the first rows of a part are clean views."""
        first, end = self.ends()[part : part + 2]
        return end - first

    def rows_of(self, pictures: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return the rows (n,) of pictures (n,), counted as in `ends`, and view numbers (n,).

        Of a validation picture there is the clean view alone.
        """
        ends, starts = np.array(self.ends()), np.array(self.starts())
        part = np.searchsorted(ends, pictures, side="right") - 1
        place = pictures - ends[part]
        varied = np.diff(ends)[part] + place * (self.num_views - 1) + views - 1
        return starts[part] + np.where(views == CLEAN, place, varied)

    def val_rows(self) -> np.ndarray:
        """Return the rows (V,) of the validation pictures."""
        pictures = np.arange(self.num_train, self.num_train + self.num_val)
        return self.rows_of(pictures, np.full(self.num_val, CLEAN))

    def views(self, part: int) -> list[tuple[int, tuple[int, ...]]]:
        """List (picture from 0 to T + V - 1, its view numbers) in the order of a part's rows."""
        first, end = self.ends()[part : part + 2]
        varied = tuple(range(CLEAN + 1, self.num_views))
        entries: list[tuple[int, tuple[int, ...]]] = [(p, (CLEAN,)) for p in range(first, end)]
        if varied:
            entries += [(p, varied) for p in range(first, min(end, self.num_train))]
        return entries
