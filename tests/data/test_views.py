import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import transferkit.timm_import  # noqa: F401  # isort: skip
from timm.data import ResizeKeepRatio, create_transform
from timm.data.transforms import str_to_interp_mode

from transferkit.data.preprocessing import Preprocessing
from transferkit.data.views import (
    LEVELS,
    OPERATIONS,
    clean_view,
    erase_,
    random_box,
    shorter_side_px,
    varied_view,
)

BASE = Preprocessing(32, 32, 0.875, "center", "bicubic", (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
SIZES = ((32, 32), (36, 36), (37, 36), (100, 41), (41, 100), (33, 640), (640, 33), (1, 1), (7, 90))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_timm(image: Image.Image, wanted: Preprocessing) -> np.ndarray:
    transform = create_transform(
        input_size=(3, wanted.height_px, wanted.width_px),
        crop_pct=wanted.crop_pct,
        crop_mode=wanted.crop_mode,
        interpolation=wanted.interpolation,
        mean=wanted.mean,
        std=wanted.std,
        use_prefetcher=True,  # bytes, before normalisation
    )
    for step in transform.transforms:
        if isinstance(step, ResizeKeepRatio):  # timm before 1.0.31 forgot it for oblong inputs
            step.interpolation = str_to_interp_mode(wanted.interpolation)
    return np.asarray(transform(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0, 1.15])
def test_clean_view_equals_timm(size: tuple[int, int], mode: str, crop_pct: float) -> None:
    image = picture(*size)
    for interpolation in ("bicubic", "bilinear"):
        wanted = replace(BASE, crop_mode=mode, crop_pct=crop_pct, interpolation=interpolation)
        view = clean_view(image, wanted)
        assert view.dtype == np.uint8
        assert np.array_equal(view, by_timm(image, wanted))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", SIZES)
def test_clean_view_equals_timm_for_an_oblong_input(size: tuple[int, int], mode: str) -> None:
    wanted = replace(BASE, height_px=40, width_px=30, crop_mode=mode)
    view = clean_view(picture(*size), wanted)
    assert view.shape == (3, 40, 30)
    assert np.array_equal(view, by_timm(picture(*size), wanted))


@pytest.mark.parametrize("level", LEVELS)
def test_views_depend_on_nothing_but_picture_and_generator(level: str) -> None:
    def view(seed: int, number: int, image: Image.Image) -> np.ndarray:
        generator = np.random.default_rng([seed, 5, number])
        return varied_view(image, BASE, level, True, generator)

    image, copy = picture(60, 50), picture(60, 50)
    first = view(1, 1, image)
    view(2, 2, image)
    assert first.shape == (3, 32, 32)
    assert np.array_equal(view(1, 1, image), first)
    assert np.array_equal(view(1, 1, copy), first)
    assert np.array_equal(image, copy)  # the picture itself is left alone
    others = [view(1, 2, image), view(2, 1, image)]
    assert [np.array_equal(first, other) for other in others] == [level == "none"] * 2


def test_level_none_is_the_clean_view() -> None:
    image = picture(70, 45)
    for flip in (True, False):
        view = varied_view(image, BASE, "none", flip, np.random.default_rng(0))
        assert np.array_equal(view, clean_view(image, BASE))


def test_half_of_the_views_are_mirrored_and_none_without_flip() -> None:
    image = picture(50, 50)

    def view(flip: bool, seed: int) -> np.ndarray:
        return varied_view(image, BASE, "light", flip, np.random.default_rng(seed))

    mirrored = 0
    for seed in range(200):
        plain, maybe = view(False, seed), view(True, seed)
        same = np.array_equal(plain, maybe)
        assert same != np.array_equal(plain[:, :, ::-1], maybe)
        mirrored += not same
    assert 70 < mirrored < 130  # 100 +- 4 standard deviations


@pytest.mark.parametrize("min_area", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("size", [(200, 200), (300, 200), (200, 260), (64, 48)])
def test_random_boxes_keep_area_and_ratio(size: tuple[int, int], min_area: float) -> None:
    generator = np.random.default_rng(0)
    width, height = size
    shares = []
    for _ in range(300):
        left, top, right, bottom = random_box(width, height, min_area, generator)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        box_w, box_h = right - left, bottom - top
        # both sides are rounded by half a pixel at most
        assert (box_w + 0.5) * (box_h + 0.5) >= min_area * width * height
        assert (box_w + 0.5) / (box_h - 0.5) >= 3 / 4
        assert (box_w - 0.5) / (box_h + 0.5) <= 4 / 3
        shares.append(box_w * box_h / (width * height))
    assert min(shares) < min_area + 0.1 * (1 - min_area)
    assert max(shares) > 0.75


def test_a_picture_too_long_for_any_box_gives_its_centre() -> None:
    generator = np.random.default_rng(0)
    assert random_box(3000, 30, 0.9, generator) == pytest.approx((1480, 0, 1520, 30))
    assert random_box(30, 3000, 0.9, generator) == pytest.approx((0, 1480, 30, 1520))


@pytest.mark.parametrize(
    ("level", "pixels"),
    [
        ("none", math.ceil(224 / 0.875)),
        ("light", math.ceil(224 / math.sqrt(0.7 * 3 / 4))),
        ("medium", math.ceil(224 / math.sqrt(0.4 * 3 / 4))),
        ("strong", math.ceil(224 / math.sqrt(0.25 * 3 / 4))),
    ],
)
def test_shorter_side_px(level: str, pixels: int) -> None:
    assert shorter_side_px(replace(BASE, height_px=224, width_px=224), level) == pixels


@pytest.mark.parametrize("level", ["light", "medium", "strong"])
def test_no_crop_of_a_picture_of_that_size_is_enlarged(level: str) -> None:
    wanted = replace(BASE, height_px=224, width_px=224)
    side = shorter_side_px(wanted, level)
    variation = LEVELS[level]
    assert variation is not None
    generator = np.random.default_rng(0)
    for _ in range(2000):
        left, top, right, bottom = random_box(side, side, variation.min_area, generator)
        assert min(right - left, bottom - top) >= 224 - 1


def test_operations_keep_size_and_mode() -> None:
    image = picture(32, 24)
    for operation in OPERATIONS:
        for strength in (-1.0, -0.3, 0.0, 0.5, 1.0):
            result = operation(image, strength)
            assert (result.size, result.mode) == ((32, 24), "RGB")
    geometric = OPERATIONS[:7]  # the others, autocontrast and equalize, have no strength
    assert all(np.array_equal(operation(image, 0.0), image) for operation in geometric)


def test_erase_replaces_a_rectangle_by_the_mean() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        array = generator.integers(0, 256, (3, 64, 64), dtype=np.uint8)
        before = array.copy()
        erase_(array, generator)
        rows, columns = np.nonzero((array != before).any(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.015 * 64**2 < area < 0.21 * 64**2
        inside = array[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        mean = before.reshape(3, -1).mean(axis=1).astype(np.uint8)
        assert np.array_equal(inside, np.broadcast_to(mean[:, None, None], inside.shape))


def test_strong_views_are_erased_with_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("transferkit.data.views.erase_", lambda *_: calls.append(1))
    image = picture(40, 40)
    for seed in range(400):
        varied_view(image, BASE, "strong", False, np.random.default_rng(seed))
    assert 65 < len(calls) < 135  # 100 +- 4 standard deviations


LONG = ((1, 20), (20, 1), (3, 257), (1023, 2), (7, 640), (30, 5000), (4999, 31), (300, 5000))


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_of_a_long_picture_only_what_is_kept_is_made_and_equals_timm(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferkit.data.views._LONGEST", 1)
    image = picture(*size)
    for base in (BASE, replace(BASE, crop_pct=0.95), replace(BASE, height_px=40, width_px=30)):
        wanted = replace(base, interpolation=interpolation)
        assert np.array_equal(clean_view(image, wanted), by_timm(image, wanted))


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (320, 4000), (4000, 320)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_part_of_a_large_picture_that_shrinks_is_that_of_the_whole(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wanted = Preprocessing(224, 224, 0.875, "center", interpolation, (0.5,) * 3, (0.5,) * 3)
    whole = clean_view(Image.fromarray(pixels), wanted)
    monkeypatch.setattr("transferkit.data.views._MOST_RESIZED", 1)
    part = clean_view(Image.fromarray(pixels), wanted)
    assert part.shape == whole.shape == (3, 224, 224)
    assert np.abs(part.astype(int) - whole).mean() < 2  # of noise; which pass is first varies
