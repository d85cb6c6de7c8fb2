"""What a pretraining method sees of a picture: views that are functions of numbers alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from transferkit.data.decode import DecodeError, decode
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.views import (
    INTERPOLATIONS,
    clean_view,
    random_box,
    shorter_side_px,
    to_array,
)
from transferkit.errors import UserError

View = Callable[[Image.Image, Preprocessing, bool, np.random.Generator], np.ndarray]
SMALLEST_BLURRED_PX = 64


def clean(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> np.ndarray:
    """Return the whole picture as the backbone is evaluated: (3, H, W) uint8."""
    return clean_view(image, size)


def weak(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> np.ndarray:
    """Draw a large crop, perhaps mirrored: (3, H, W) uint8."""
    return to_array(cropped(image, size, (0.6, 1.0), flip, generator))


def strong(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> np.ndarray:
    """Draw a crop of any size, its colours changed, perhaps grey or blurred: (3, H, W) uint8.

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, appendix A, with
    half of its strength of colour, as its authors use for small pictures.
    """
    return to_array(varied(cropped(image, size, (0.2, 1.0), flip, generator), generator))


def part(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> np.ndarray:
    """Draw a small part of a picture, enlarged and varied like `strong`: (3, H, W) uint8."""
    return to_array(varied(cropped(image, size, (0.05, 0.4), flip, generator), generator))


def local(
    image: Image.Image, size: Preprocessing, flip: bool, generator: np.random.Generator
) -> np.ndarray:
    """Draw what `part` draws, at half the height and width: (3, H // 2, W // 2) uint8.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020, section 3.2.
    """
    half = replace(size, height_px=max(1, size.height_px // 2), width_px=max(1, size.width_px // 2))
    return part(image, half, flip, generator)


def varied(view: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Change the colours of a view, make it grey or blur it, each by chance."""
    if generator.random() < 0.8:
        view = jittered(view, 0.4, 0.1, generator)
    if generator.random() < 0.2:
        view = ImageOps.grayscale(view).convert("RGB")
    if min(view.size) >= SMALLEST_BLURRED_PX and generator.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
    return view


def cropped(
    image: Image.Image,
    size: Preprocessing,
    area: tuple[float, float],
    flip: bool,
    generator: np.random.Generator,
) -> Image.Image:
    """Return a random crop of a share within `area` of a picture, resized, perhaps mirrored."""
    resample = INTERPOLATIONS.get(size.interpolation, Image.Resampling.BICUBIC)
    box = random_box(image.width, image.height, area[0], generator, area[1])
    view = image.resize((size.width_px, size.height_px), resample, box=box, reducing_gap=3.0)
    return ImageOps.mirror(view) if flip and generator.random() < 0.5 else view


def jittered(
    image: Image.Image, strength: float, hue: float, generator: np.random.Generator
) -> Image.Image:
    """Change brightness, contrast and saturation by up to `strength`, the hue by up to a share."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + strength * generator.uniform(-1, 1))
    turned = np.array(image.convert("HSV"))
    turned[..., 0] += np.uint8(round(255 * generator.uniform(-hue, hue)) % 256)
    return Image.fromarray(turned, "HSV").convert("RGB")


VIEWS: dict[str, View] = {
    "clean": clean,
    "weak": weak,
    "strong": strong,
    "part": part,
    "local": local,
}


@dataclass(frozen=True)
class PretrainingViews:
    """Everything that turns (file, picture number, epoch) into pixels.

    kinds: a row of VIEWS for each view. flip: pictures may be mirrored.
    """

    kinds: tuple[str, ...]
    preprocessing: Preprocessing
    flip: bool = True
    seed: int = 0
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 100_000_000

    def make(self, path: Path, picture: int, epoch: int) -> tuple[np.ndarray, ...]:
        """Decode a picture once and make its views of an epoch: V arrays (3, H, W) uint8.

        Raises UserError when the file can no longer be read.
        """
        level = "none" if set(self.kinds) == {"clean"} else "medium"
        try:
            image = decode(
                path,
                background=self.background,
                max_pixels=self.max_pixels,
                at_least_px=shorter_side_px(self.preprocessing, level),
            )
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

    def clean(self) -> "PretrainingViews":
        """Return the maker of one clean view for each picture, whatever the epoch."""
        return replace(self, kinds=("clean",))
