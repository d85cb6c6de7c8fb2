"""What of a picture a network sees: a centre crop, or all of it, squashed or padded."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from transferkit.data.preprocessing import Preprocessing
from transferkit.events import Notice

CROP_MODES = {"center": "center", "squash": "squash", "pad": "border"}
"""Choice of --crop to timm's name for it, which model.json has."""

LEAST_KEPT = 0.5
"""Share of the area that is worth a warning when less is seen.

With the usual crop share of 0.875 photographs of 4:3 keep 57 %, of 3:2 51 %, and that is how most
backbones were trained and measured; 16:9 keeps 43 %.
"""


def framed(preprocessing: Preprocessing, crop: str, share: float | None) -> Preprocessing:
    """Return the preprocessing with another framing.

    crop: one of `CROP_MODES`, or "backbone", which changes nothing. share: crop_pct of a centre
    crop, None for the backbone's own; squashed and padded pictures are whole.
    """
    if crop in ("squash", "pad"):
        return replace(preprocessing, crop_mode=CROP_MODES[crop], crop_pct=1.0)
    return replace(
        preprocessing,
        crop_mode=CROP_MODES.get(crop, preprocessing.crop_mode),
        crop_pct=preprocessing.crop_pct if share is None else share,
    )


def framing(preprocessing: Preprocessing) -> str:
    """Return input size and framing in words: `centre crop of 224 px (crop share 0.875)`."""
    height, width = preprocessing.height_px, preprocessing.width_px
    size = f"{width} px" if width == height else f"{width} × {height} px"
    how = {"squash": "squashed to", "border": "padded to"}
    share = f" (crop share {preprocessing.crop_pct:g})" if preprocessing.crop_pct != 1 else ""
    return f"{how.get(preprocessing.crop_mode, 'centre crop of')} {size}{share}"


def kept_share(sizes: np.ndarray, preprocessing: Preprocessing) -> float:
    """Return the median share of the area, 0..1, that clean views show of pictures (N, 2)."""
    sides = sizes / (preprocessing.width_px, preprocessing.height_px)  # (N, 2)
    scale = {"squash": sides, "border": sides.max(axis=1, keepdims=True)}.get(
        preprocessing.crop_mode, sides.min(axis=1, keepdims=True)
    )
    kept = np.minimum(1, preprocessing.crop_pct * scale / sides).prod(axis=1)
    return float(np.median(kept))


def cut_away(sizes: np.ndarray, preprocessing: Preprocessing, command: str = "") -> Iterator[str]:
    """Yield a warning where a centre crop shows little of pictures of these sizes (N, 2).

    command: that has the options, where it is another one.
    """
    if preprocessing.crop_mode != "center" or not len(sizes):
        return
    kept = kept_share(sizes, preprocessing)
    if kept < LEAST_KEPT:
        ratio = float(np.median(sizes.max(axis=1) / sizes.min(axis=1)))
        yield (
            f"{framing(preprocessing)} keeps {kept:.0%} of the area of these pictures "
            f"(median {ratio:.3g}:1); {command}--crop squash or {command}--crop pad keep all"
        )


def framing_notices(
    sizes: np.ndarray, preprocessing: Preprocessing, chosen: bool
) -> Iterator[Notice]:
    """Yield what there is to say of a framing; chosen: it is not simply the backbone's own."""
    if chosen:
        yield Notice(f"pictures: {framing(preprocessing)}")
    for text in cut_away(sizes, preprocessing):
        yield Notice(text, warning=True)
