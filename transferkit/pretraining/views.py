"""Augmented views of pictures for pretraining, determined by seed, picture number and epoch."""

from collections.abc import Callable, Sequence
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
from transferkit.data.views import (
    clean_view,
    random_crop,
    shorter_side_px,
    to_array,
)
from transferkit.errors import UserError
from transferkit.pretraining.colours import UNCHANGED, drawn_colours, recoloured

SMALLEST_BLURRED_PX = 64


@dataclass(frozen=True)
class View:
    """One view of a picture: pixels (3, h, w) uint8, and its colour jitter, not yet applied."""

    pixels: np.ndarray
    colours: NDArray[np.float32]


Draw = Callable[[Image.Image, Preprocessing, bool, np.random.Generator], View]


def unchanged(pixels: np.ndarray) -> View:
    """Return a view without colour jitter."""
    return View(pixels, np.array(UNCHANGED, dtype=np.float32))


def clean(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> View:
    """Return the whole picture, preprocessed as in evaluation: (3, H, W)."""
    return unchanged(clean_view(image, size))


def weak(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> View:
    """Draw a large crop, randomly mirrored: (3, H, W)."""
    return unchanged(to_array(cropped(image, size, (0.6, 1.0), flip, generator)))


def strong(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> View:
    """Draw a crop of any size with colour jitter, random greyscale and blur: (3, H, W).

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, appendix A, with
    half the jitter strength, as the authors use for small pictures.
    """
    return augmented(cropped(image, size, (0.2, 1.0), flip, generator), generator)


def part(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> View:
    """Draw a small crop, enlarged and augmented like `strong`: (3, H, W)."""
    return augmented(cropped(image, size, (0.05, 0.4), flip, generator), generator)


def local(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> View:
    """Draw a view like `part` at half the height and width: (3, H // 2, W // 2).

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020, section 3.2.
    """
    half = replace(size, height_px=max(1, size.height_px // 2), width_px=max(1, size.width_px // 2))
    return part(image, half, flip, generator)


def augmented(image: Image.Image, generator: np.random.Generator) -> View:
    """Blur a view at random, unless it is small, and draw its colour jitter."""
    if min(image.size) >= SMALLEST_BLURRED_PX and generator.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
    return View(to_array(image), drawn_colours(generator))


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


VIEWS: dict[str, Draw] = {
    "clean": clean,
    "weak": weak,
    "strong": strong,
    "part": part,
    "local": local,
}


@dataclass(frozen=True)
class PretrainingViews:
    """Makes views from (file, picture number, epoch).

    kinds: a row of VIEWS for each view. flip: mirror at random. kept: cache of decoded pictures, if
    any.
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
            VIEWS[kind](image, self.preprocessing, self.flip, generator) for kind in self.kinds
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
