"""How the files of a data set become pictures: the options that every reader of them shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transferkit.config.data import DEFAULT_MAX_PIXELS, Data
from transferkit.data.depth import Range
from transferkit.units import parse_colour

MOST_MEMORY = 560_000_000
"""Bytes that decoding one picture may take; 8 more for each pixel that the limit is raised by."""

_EARLY_MAX_PIXELS = 100_000_000
"""The default of the releases that knew neither depth_range nor bands."""


@dataclass(frozen=True)
class Reading:
    """How files become RGB.

    background: RGB, 0..255, shown wherever a picture is transparent.
    max_pixels: pictures with more are refused from their header.
    depth_range: what becomes black and white in pictures of more than 8 bits; None: by each
        picture's type and values, see `transferkit.data.depth.own_range`.
    bands: which bands of a picture with more than three, from 1, are red, green and blue (or grey,
        if it is one); () is the first three of a picture in colours.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = DEFAULT_MAX_PIXELS
    depth_range: Range | None = None
    bands: tuple[int, ...] = ()

    @property
    def most_bytes(self) -> int:
        """Bytes that decoding may take."""
        return MOST_MEMORY + 8 * max(0, self.max_pixels - DEFAULT_MAX_PIXELS)

    def entries(self) -> dict[str, Any]:
        """Return the entries of model.json, without the background's name."""
        scale = None if self.depth_range is None else list(self.depth_range)
        return {"max_pixels": self.max_pixels, "depth_range": scale, "bands": list(self.bands)}


PLAIN = Reading()
"""Without any option."""


def reading_of(options: Data) -> Reading:
    """Return how the options of a data set say that its files are read."""
    scale = (options.depth_range[0], options.depth_range[1]) if options.depth_range else None
    return Reading(parse_colour(options.background), options.max_pixels, scale, options.bands)


def reading_from(description: Mapping[str, Any]) -> Reading:
    """Return how the pictures of a model.json were read; early ones have no depth range, no bands.

    Raises KeyError, TypeError or ValueError where entries are missing or wrong.
    """
    scale = description.get("depth_range")
    limit = int(description["max_pixels"])
    if "depth_range" not in description and limit == _EARLY_MAX_PIXELS:
        limit = DEFAULT_MAX_PIXELS
    depth_range = None if scale is None else (float(scale[0]), float(scale[1]))
    background, bands = description["background"], tuple(description.get("bands", ()))
    return Reading(parse_colour(background), limit, depth_range, bands)
