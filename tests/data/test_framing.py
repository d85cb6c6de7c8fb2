"""What of a picture is seen: against Pillow alone, against ramps, and against counted pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from transferkit.backbones.create import create_backbone
from transferkit.data.framing import cut_away, framed, framing, kept_share
from transferkit.data.inspect import USUAL_FRAMING
from transferkit.data.loader import CLEAN, ViewMaker
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.views import clean_size, random_box, random_crop

BASE = Preprocessing(32, 32, 0.875, "center", "bicubic", (0.2, 0.4, 0.0), (0.2, 0.2, 0.2))
FILL = (51, 102, 0)  # 255 times the mean
SIZES = ((60, 10), (10, 60), (48, 32), (40, 40), (9, 7))
BICUBIC = Image.Resampling.BICUBIC


def ramps(width: int, height: int) -> Image.Image:
    """Red rises from 0 to 255 along the width, green along the height; blue is 255."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, np.full_like(red, 255)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def by_pillow(image: Image.Image, crop: str) -> Image.Image:
    width, height = image.size
    if crop == "squash":
        return image.resize((32, 32), BICUBIC)
    if crop == "pad":
        view = Image.new("RGB", (32, 32), FILL)
        size = tuple(max(1, round(32 * side / max(width, height))) for side in image.size)
        view.paste(image.resize(size, BICUBIC), ((32 - size[0]) // 2, (32 - size[1]) // 2))
        return view
    size = (32, 32 * height // width) if width <= height else (32 * width // height, 32)
    left, top = (round((side - 32) / 2) for side in size)
    return image.resize(size, BICUBIC).crop((left, top, left + 32, top + 32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
def test_the_clean_view_is_what_pillow_makes(crop: str, size: tuple[int, int], tmp_path) -> None:
    ramps(*size).save(tmp_path / "a.png")
    wanted = framed(BASE, crop, 1.0 if crop == "center" else None)
    (view,) = ViewMaker(wanted).views(tmp_path / "a.png", 0, (CLEAN,))
    expected = np.asarray(by_pillow(ramps(*size), crop)).transpose(2, 0, 1)
    assert np.array_equal(view, expected)


def test_a_framing_changes_nothing_else_and_backbone_nothing() -> None:
    assert framed(BASE, "backbone", None) == BASE
    assert framed(BASE, "backbone", 0.6) == replace(BASE, crop_pct=0.6)
    own = replace(BASE, crop_mode="squash", crop_pct=0.9)
    assert framed(own, "backbone", None) == own
    assert framed(own, "center", None) == replace(own, crop_mode="center")
    assert framed(BASE, "squash", None) == replace(BASE, crop_mode="squash", crop_pct=1.0)
    assert framed(BASE, "pad", None) == replace(BASE, crop_mode="border", crop_pct=1.0)
    assert framing(BASE) == "centre crop of 32 px (crop share 0.875)"
    assert framing(framed(replace(BASE, height_px=40), "pad", None)) == "padded to 32 × 40 px"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("area", [(0.25, 1.0), (0.05, 0.4)])
def test_crops_of_a_squashed_picture_have_its_shares(
    size: tuple[int, int], area: tuple[float, float]
) -> None:
    wanted, generator = framed(BASE, "squash", None), np.random.default_rng(0)
    large = ramps(10 * size[0], 10 * size[1])
    spans, ends = [], []
    for _ in range(200):
        view = np.asarray(random_crop(large, wanted, area, generator)).astype(float)
        assert (view[..., 2] == 255).all()  # nothing but the picture
        spans.append([np.ptp(view[..., channel]) / 255 for channel in (0, 1)])
        ends.append([view[..., 0].min(), view[..., 0].max()])
    across, down = np.array(spans).T * 32 / 31  # from the first pixel's middle to the last one's
    assert (across * down > 0.8 * area[0]).all()
    assert (across * down < 1.15 * area[1]).all()
    assert (across / down > 0.7).all()
    assert (across / down < 1.45).all()
    assert np.min(ends) < 10
    assert np.max(ends) > 245


@pytest.mark.parametrize("size", [(600, 100), (100, 600), (480, 320), (9, 2000)])
def test_crops_of_a_padded_picture_show_as_much_as_fits(
    size: tuple[int, int],
) -> None:
    wanted = framed(replace(BASE, height_px=256, width_px=256), "pad", None)
    generator, places = np.random.default_rng(0), set()
    image = ramps(*size)
    for _ in range(100):
        view = np.asarray(random_crop(image, wanted, (0.25, 1.0), generator)).astype(float)
        rows, columns = np.nonzero(view[..., 2])
        inside = view[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (inside[..., 2] == 255).all()
        assert inside.shape[0] * inside.shape[1] == len(rows)
        assert (view[view[..., 2] == 0] == FILL).all()
        shown = inside.shape[1], inside.shape[0]
        places.add((rows.min(), columns.min()))
        shares = [np.ptp(inside[..., channel]) / 255 for channel in (0, 1)]
        if max(size) >= 2 * min(size):  # then the shorter side fits into every crop
            assert shares[int(np.argmin(size))] > 0.95 or min(shown) < 4
        if min(shown) >= 4:
            # from the first pixel's middle to the last one's
            scales = [
                (drawn - 1) / (share * (old - 1))
                for drawn, share, old in zip(shown, shares, size, strict=True)
            ]
            assert 0.7 < scales[0] / scales[1] < 1.43  # 3/4 to 4/3, as of any random crop
    assert len(places) > 20


@pytest.mark.parametrize("box", [(0, 0, 480, 480), (37, 30, 437, 430), (0, 5, 300, 405)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_crop_of_a_padded_picture_is_that_of_one_padded_by_pillow(
    box: tuple[int, ...], turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, padded = ramps(480, 320), Image.new("RGB", (480, 480), FILL)
    padded.paste(image, (0, 80))
    if turned:
        image, padded = (i.transpose(Image.Transpose.TRANSPOSE) for i in (image, padded))
        box = (box[1], box[0], box[3], box[2])
    monkeypatch.setattr("transferkit.data.views.random_box", lambda *_: box)
    wanted = framed(replace(BASE, height_px=240, width_px=240), "pad", None)
    view = np.asarray(random_crop(image, wanted, (0.25, 1.0), np.random.default_rng(0)))
    expected = np.asarray(padded.resize((240, 240), BICUBIC, box=box))
    off = np.abs(view.astype(float) - expected).max(axis=2)  # (240, 240)
    assert np.median(off) <= 1
    assert (off > 3).mean() < 0.03  # the rows beside the margins


def test_crops_of_the_picture_itself_are_plain_boxes() -> None:
    image = ramps(60, 45)
    box = random_box(60, 45, 0.3, np.random.default_rng(5), 0.9)
    expected = image.resize((32, 32), BICUBIC, box=box, reducing_gap=3.0)
    assert random_crop(image, BASE, (0.3, 0.9), np.random.default_rng(5)) == expected


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("shape", [(224, 224), (320, 200)])
def test_the_kept_share_is_that_of_the_resized_picture(crop: str, shape: tuple[int, int]) -> None:
    wanted = framed(replace(BASE, height_px=shape[0], width_px=shape[1]), crop, None)
    for size in ((6000, 1000), (1000, 6000), (4000, 3000), (3000, 3000)):
        wide, high = clean_size(*size, wanted)
        expected = min(1, shape[1] / wide) * min(1, shape[0] / high)
        assert kept_share(np.array([size]), wanted) == pytest.approx(expected, rel=0.02)


def test_panoramas_are_warned_of_and_usual_photographs_are_not() -> None:
    model = create_backbone(pretrained=False)
    own = model.preprocessing
    assert replace(own, mean=(), std=()) == USUAL_FRAMING
    for size in ((4000, 3000), (6000, 4000), (4000, 6000), (500, 500)):
        assert list(cut_away(np.array([size]), own)) == []
    sizes = np.array([(600, 100), (100, 600), (1200, 200), (300, 200)])
    (text,) = cut_away(sizes, own)
    assert text == (
        "centre crop of 224 px (crop share 0.875) keeps 13% of the area of these pictures "
        "(median 6:1); --crop squash or --crop pad keep all"
    )
    assert "17%" in next(cut_away(sizes, framed(own, "center", 1.0), "finetune "))
    for crop in ("squash", "pad"):
        assert list(cut_away(sizes, framed(own, crop, None))) == []
        assert kept_share(sizes, framed(own, crop, None)) == 1
    assert list(cut_away(sizes[:0], own)) == []
