"""What the backbone sees of a picture: one clean view, and any number of varied ones.

Every view is a pure function of (picture, preprocessing, level, seed): the same numbers give the
same bytes, in any thread and any order, so that cached and live training can see the same views.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from transferkit.data.preprocessing import Preprocessing
from transferkit.data.resampling import resized_part, taps

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


_LONGEST = 16
"""Times the input's side; a resized picture that is longer is made in the part that counts."""
_MOST_RESIZED = 10_000_000
"""Pixels; of a larger resized picture, too, only that part is made."""

MIN_RATIO = 3 / 4
"""Aspect ratio of the most upright random crop; of the widest one it is the inverse."""


@dataclass(frozen=True)
class Variation:
    """How strongly a training view varies.

    min_area: smallest share of the picture's area that a random crop keeps, 0..1.
    jitter: largest relative change of brightness, contrast and saturation.
    operation: whether one random operation of `OPERATIONS` is applied.
    erase: probability that a rectangle is replaced by the picture's mean colour.
    """

    min_area: float
    jitter: float = 0.0
    operation: bool = False
    erase: float = 0.0


LEVELS: dict[str, Variation | None] = {
    "none": None,
    "light": Variation(min_area=0.7),
    "medium": Variation(min_area=0.4, jitter=0.2),
    "strong": Variation(min_area=0.25, jitter=0.4, operation=True, erase=0.25),
}

# TrivialAugment, Müller and Hutter, ICCV 2021: one operation, strength uniform in -1..1.
OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, strength: image,
    lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR),
    lambda image, strength: shear(image, 0.3 * strength, 0),
    lambda image, strength: shear(image, 0, 0.3 * strength),
    lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    lambda image, strength: ImageOps.solarize(image, 256 - round(128 * abs(strength))),
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
)


def shear(image: Image.Image, along_x: float, along_y: float) -> Image.Image:
    """Shear an image around its centre by the given tangents."""
    centre_x, centre_y = image.width / 2, image.height / 2
    matrix = (1, along_x, -along_x * centre_y, along_y, 1, -along_y * centre_x)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def shorter_side_px(preprocessing: Preprocessing, level: str = "none") -> int:
    """Return the shorter side a decoded picture must keep so that no view is enlarged by decoding.

    Random crops magnify: the shorter side of a crop of `min_area` with the most oblong ratio is
    sqrt(min_area * 3/4) times that of a square picture.
    """
    variation = LEVELS[level]
    side = max(preprocessing.height_px, preprocessing.width_px)
    clean = side / preprocessing.crop_pct
    return math.ceil(
        max(clean, side / math.sqrt(variation.min_area * MIN_RATIO) if variation else 0)
    )


def clean_view(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resize and crop as the backbone was evaluated: (3, H, W) uint8.

    Equals timm's evaluation transform before its normalisation, for its crop modes: `center`
    (shorter side to size / crop_pct), `squash` (both sides) and `border` (longer side), each with
    a centre crop. What the picture does not reach is black, with `border` the mean colour.
    """
    height, width = preprocessing.height_px, preprocessing.width_px
    resample = INTERPOLATIONS.get(preprocessing.interpolation, Image.Resampling.BICUBIC)
    wanted = clean_size(image.width, image.height, preprocessing)
    resized = _resized(image, wanted, resample, preprocessing)
    view = _empty_view(preprocessing)
    corner = (centre_offset(resized.width, width), centre_offset(resized.height, height))
    view.paste(resized, corner)
    return to_array(view)


def _empty_view(preprocessing: Preprocessing) -> Image.Image:
    """Return what is seen where no picture is."""
    bordered = preprocessing.crop_mode == "border"
    fill = tuple(round(255 * mean) if bordered else 0 for mean in preprocessing.mean)
    return Image.new("RGB", (preprocessing.width_px, preprocessing.height_px), fill)


def _resized(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, room: Preprocessing
) -> Image.Image:
    """Resize; of a picture far longer than wide only what a centre crop keeps.

    A strip of 1 × 20,000 pixels would become one of 224 × 4,480,000. To the same bits, but where a
    large one shrinks and Pillow resizes columns first, as its older releases do.
    """
    along = 0 if size[0] > size[1] else 1
    kept = (room.width_px, room.height_px)[along]
    most = max(_LONGEST * kept, image.size[along])
    small = size[along] <= most and math.prod(size) <= _MOST_RESIZED
    if small or resample == Image.Resampling.NEAREST:
        return image.resize(size, resample)
    first = -centre_offset(size[along], kept)
    if along == 0:  # Pillow resizes columns first
        middle = resized_part(image, 0, size[0], (first, first + kept), resample)
        return middle.resize((kept, size[1]), resample)
    if size[1] <= image.height:
        middle = resized_part(image, 1, size[1], (first, first + kept), resample)
        return middle.resize((size[0], kept), resample)
    places = taps(image.height, size[1], (first, first + kept), resample)[0]
    top, bottom = int(places.min()), int(places.max()) + 1
    rows = image.crop((0, top, image.width, bottom)).resize((size[0], bottom - top), resample)
    return resized_part(rows, 1, size[1], (first, first + kept), resample, (top, image.height))


def clean_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the (width, height) that a picture of width x height is resized to, as timm rounds."""
    target_w = math.floor(preprocessing.width_px / preprocessing.crop_pct)
    target_h = math.floor(preprocessing.height_px / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        return target_w, target_h
    if preprocessing.crop_mode == "border" or target_w != target_h:
        pick = max if preprocessing.crop_mode == "border" else min
        ratio = pick(width / target_w, height / target_h)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if width <= height:
        return target_w, max(1, int(target_w * height / width))
    return max(1, int(target_h * width / height)), target_h


def centre_offset(extent: int, room: int) -> int:
    """Return where a picture's side starts in the middle of `room`; negative when it is longer."""
    return (room - extent) // 2 if extent < room else -round((extent - room) / 2)


def varied_view(
    image: Image.Image,
    preprocessing: Preprocessing,
    level: str,
    flip: bool,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw one training view of a picture: (3, H, W) uint8. Level `none` gives the clean view."""
    variation = LEVELS[level]
    if variation is None:
        return clean_view(image, preprocessing)
    view = random_crop(image, preprocessing, (variation.min_area, 1.0), generator)
    if flip and generator.random() < 0.5:
        view = ImageOps.mirror(view)
    if variation.jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            factor = 1 + variation.jitter * generator.uniform(-1, 1)
            view = enhance(view).enhance(factor)
    if variation.operation:
        operation = OPERATIONS[generator.integers(len(OPERATIONS))]
        view = operation(view, generator.uniform(-1, 1))
    array = to_array(view)
    if generator.random() < variation.erase:
        erase_(array, generator)
    return array


def random_crop(
    image: Image.Image,
    preprocessing: Preprocessing,
    area: tuple[float, float],
    generator: np.random.Generator,
) -> Image.Image:
    """Return a random part of the framed picture at the input's size, see `random_box`.

    area: range of its share of the area, 0..1; of the picture, or of the squashed or padded one.
    """
    size = (preprocessing.width_px, preprocessing.height_px)
    resample = INTERPOLATIONS.get(preprocessing.interpolation, Image.Resampling.BICUBIC)
    if preprocessing.crop_mode == "center":
        box = random_box(image.width, image.height, area[0], generator, area[1])
        return image.resize(size, resample, box=box, reducing_gap=3.0)
    scale = max(image.width / size[0], image.height / size[1])
    room = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))  # the input's shape
    box = random_box(*room, area[0], generator, area[1])
    place = _squashed if preprocessing.crop_mode == "squash" else _padded
    (left, right, x, wide), (top, bottom, y, high) = (
        place((box[i], box[i + 2]), room[i], image.size[i], size[i]) for i in (0, 1)
    )
    part = (left, top, right, bottom)
    seen = image.resize((wide, high), resample, box=part, reducing_gap=3.0)
    view = _empty_view(preprocessing)
    view.paste(seen, (x, y))
    return view


def _squashed(
    ends: tuple[float, float], room: int, extent: int, side: int
) -> tuple[float, float, int, int]:
    """Return, along one axis, which part of a picture a crop of the squashed one shows, and where.

    ends: of the crop in the room; extent: of the picture; side: of the view. (start and end in the
    picture, start and length in the view).
    """
    start, end = (min(extent, place * extent / room) for place in ends)
    return start, end, 0, side


def _padded(
    ends: tuple[float, float], room: int, extent: int, side: int
) -> tuple[float, float, int, int]:
    """Do as `_squashed` for a padded picture; the crop moves to show as much of it as fits."""
    length = ends[1] - ends[0]
    margin = (room - extent) / 2
    near, far = sorted((margin, margin + extent - length))
    near, far = max(0, near), min(room - length, far)
    share = ends[0] / (room - length) if room > length else 0.0  # uniform in 0..1
    offset = near + share * (far - near) - margin  # of the crop in the picture
    start, end = max(0.0, offset), min(float(extent), offset + length)
    first = min(side - 1, round((start - offset) * side / length))
    last = max(first + 1, round((end - offset) * side / length))
    return start, end, first, last - first


def random_box(
    width: int,
    height: int,
    min_area: float,
    generator: np.random.Generator,
    max_area: float = 1.0,
) -> tuple[float, float, float, float]:
    """Draw a crop (left, top, right, bottom) of `min_area` to `max_area` of the picture.

    Area uniform between these, aspect ratio log-uniform in 3/4..4/3, place uniform; after ten
    failed draws the largest centred crop within these ratios.
    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """
    for _ in range(10):
        area = width * height * generator.uniform(min_area, max_area)
        ratio = math.exp(generator.uniform(math.log(MIN_RATIO), math.log(1 / MIN_RATIO)))
        crop_w, crop_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            left = int(generator.integers(0, width - crop_w + 1))
            top = int(generator.integers(0, height - crop_h + 1))
            return left, top, left + crop_w, top + crop_h
    ratio = min(max(width / height, MIN_RATIO), 1 / MIN_RATIO)
    box_w, box_h = min(width, height * ratio), min(height, width / ratio)
    margin_x, margin_y = (width - box_w) / 2, (height - box_h) / 2
    return margin_x, margin_y, margin_x + box_w, margin_y + box_h


def erase_(array: np.ndarray, generator: np.random.Generator) -> None:
    """Replace a random rectangle of 2 to 20 % of the area, in place, by the mean colour.

    array: (3, H, W) uint8. Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    _, height, width = array.shape
    area = height * width * generator.uniform(0.02, 0.2)
    ratio = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
    box_h = min(height, max(1, round(math.sqrt(area * ratio))))
    box_w = min(width, max(1, round(math.sqrt(area / ratio))))
    top = int(generator.integers(0, height - box_h + 1))
    left = int(generator.integers(0, width - box_w + 1))
    mean = array.reshape(3, -1).mean(axis=1).astype(np.uint8)
    array[:, top : top + box_h, left : left + box_w] = mean[:, None, None]


def to_array(image: Image.Image) -> np.ndarray:
    """Return an RGB image as (3, H, W) uint8, contiguous."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
