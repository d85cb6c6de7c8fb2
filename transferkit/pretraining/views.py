"""Augmented views of pictures for pretraining, determined by seed, picture number and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from transferkit.backbones.devices import to_device
from transferkit.data.decode import DecodeError, decode
from transferkit.data.kept import KeptPictures
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.reading import PLAIN, Reading
from transferkit.data.views import clean_view, random_crop, shorter_side_px, to_array
from transferkit.errors import UserError
from transferkit.pretraining.colours import UNCHANGED, drawn_colours, recoloured

SMALLEST_BLURRED_PX = 64


@dataclass(frozen=True)
class View:
    """One view of a picture: pixels (3, h, w) uint8, and its colour jitter, not yet applied."""

    pixels: np.ndarray
    colours: NDArray[np.float32]


@dataclass(frozen=True)
class ViewKind:
    """How a view is drawn. area: range of the crop's share of the picture; None: the whole picture.

    augment: blur and colour jitter. half: half the input's height and width.
    """

    area: tuple[float, float] | None
    augment: bool = False
    half: bool = False


VIEWS = {
    "clean": ViewKind(None),
    "weak": ViewKind((0.6, 1.0)),
    "strong": ViewKind((0.2, 1.0), augment=True),
    "part": ViewKind((0.05, 0.4), augment=True),
    "local": ViewKind((0.05, 0.4), augment=True, half=True),
}
"""The kinds of views, by name; clean views are preprocessed as in evaluation.

Source of strong: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, appendix A,
with half the jitter strength, as the authors use for small pictures; of local: Caron et al.,
"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020,
section 3.2.
"""


def drawn(
    kind: ViewKind,
    image: Image.Image,
    size: Preprocessing,
    flip: bool,
    generator: np.random.Generator,
) -> View:
    """Draw a view: crop, mirroring, blur (unless the view is small) and colour jitter."""
    unchanged = np.array(UNCHANGED, dtype=np.float32)
    if kind.area is None:
        return View(clean_view(image, size), unchanged)
    if kind.half:
        height_px, width_px = max(1, size.height_px // 2), max(1, size.width_px // 2)
        size = replace(size, height_px=height_px, width_px=width_px)
    view = cropped(image, size, kind.area, flip, generator)
    if not kind.augment:
        return View(to_array(view), unchanged)
    if min(view.size) >= SMALLEST_BLURRED_PX and generator.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
    return View(to_array(view), drawn_colours(generator))


def cropped(
    image: Image.Image,
    size: Preprocessing,
    area: tuple[float, float],
    flip: bool,
    generator: np.random.Generator,
) -> Image.Image:
    """Return a random crop, resized and randomly mirrored. area: range of its share of the area."""
    view = random_crop(image, size, area, generator)
    return ImageOps.mirror(view) if flip and generator.random() < 0.5 else view


@dataclass(frozen=True)
class PretrainingViews:
    """Makes views from (file, picture number, epoch).

    kinds: keys of VIEWS, one per view. flip: mirror at random. kept: cache of decoded pictures.
    """

    kinds: tuple[str, ...]
    preprocessing: Preprocessing
    flip: bool = True
    seed: int = 0
    reading: Reading = PLAIN
    kept: KeptPictures | None = None

    def make(self, path: Path, picture: int, epoch: int) -> tuple[View, ...]:
        """Return a picture's views in an epoch. Raises UserError if it cannot be read."""
        try:
            image = self.picture(path)
        except (DecodeError, OSError) as error:
            raise UserError(
                f"{path} can no longer be read: {error}",
                "it was readable when the pictures were scanned",
                "restore it and run again; every finished epoch is kept",
            ) from None
        generator = np.random.default_rng([self.seed, picture, epoch, 4])
        return tuple(
            drawn(VIEWS[kind], image, self.preprocessing, self.flip, generator)
            for kind in self.kinds
        )

    def picture(self, path: Path) -> Image.Image:
        """Decode a picture, about as large as its views need. Raises DecodeError or OSError."""
        level = "none" if set(self.kinds) == {"clean"} else "medium"
        needed_px = shorter_side_px(self.preprocessing, level)

        def read() -> Image.Image:
            image = decode(path, self.reading, needed_px)
            return image.reduce(max(1, min(image.size) // needed_px))

        return read() if self.kept is None else self.kept.get((path, needed_px), read)

    def clean(self) -> "PretrainingViews":
        """Return the same with a single clean view per picture, independent of the epoch."""
        return replace(self, kinds=("clean",), kept=None)


def as_batch(views: Sequence[View], device: torch.device) -> Tensor:
    """Stack views to (N, 3, H, W), values 0..1, in channels_last, and apply their colour jitter."""
    pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
    images = to_device(pixels, device).float().div_(255)
    colours = np.stack([view.colours for view in views])
    if (colours == UNCHANGED).all():
        return images
    return recoloured(images, torch.from_numpy(colours).to(device))
