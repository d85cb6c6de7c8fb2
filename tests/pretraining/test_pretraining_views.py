from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError
from transferkit.pretraining.views import VIEWS, PretrainingViews, View, as_batch, cropped

SIZE = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.5,) * 3, (0.5,) * 3)


def same(first: View, second: View) -> bool:
    return np.array_equal(first.pixels, second.pixels) and np.array_equal(
        first.colours, second.colours
    )


def some_picture(unlabeled: Path) -> Path:
    return next(unlabeled.rglob("*.png"))


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_is_a_function_of_picture_epoch_and_seed(kind: str, unlabeled: Path) -> None:
    maker = PretrainingViews((kind, kind), SIZE)
    path = some_picture(unlabeled)
    first, second = maker.make(path, 3, 5)
    again, _ = maker.make(path, 3, 5)
    later, _ = maker.make(path, 3, 6)
    assert first.pixels.shape == ((3, 16, 16) if kind == "local" else (3, 32, 32))
    assert first.pixels.dtype == np.uint8
    assert same(first, again)
    assert same(first, second) == (kind == "clean")
    assert same(first, later) == (kind == "clean")


def test_strong_views_differ_more_than_weak_ones(unlabeled: Path) -> None:
    def change(kind: str) -> float:
        maker = PretrainingViews((kind,), SIZE)
        paths = [p for p in unlabeled.rglob("*.png") for _ in range(4)]
        made = [maker.make(p, 0, e)[0] for e, p in enumerate(paths)]
        clean = [maker.clean().make(p, 0, 0)[0] for p in paths]
        cpu = torch.device("cpu")
        return float((as_batch(made, cpu) - as_batch(clean, cpu)).abs().mean())

    assert change("strong") > 1.3 * change("weak") > 0


def test_parts_are_small_parts(unlabeled: Path) -> None:
    """A ramp from left to right: a view spans as much of it as its crop is wide."""
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    generator = np.random.default_rng(0)
    spans = []
    for _ in range(200):
        view = cropped(ramp, SIZE, (0.05, 0.4), True, generator)
        spans.append(np.ptp(np.asarray(view)[..., 0].astype(float)) / 200)
    assert 0.15 < min(spans) < 0.25
    assert 0.55 < max(spans) < np.sqrt(0.4 * 4 / 3)


def test_nothing_is_mirrored_where_sides_matter(unlabeled: Path) -> None:
    path = some_picture(unlabeled)
    straight = PretrainingViews(("weak",), SIZE, flip=False)
    mirrored = PretrainingViews(("weak",), SIZE, flip=True)
    differs = [
        not same(straight.make(path, 0, e)[0], mirrored.make(path, 0, e)[0]) for e in range(20)
    ]
    assert 4 < sum(differs) < 16


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png can no longer be read"):
        PretrainingViews(("clean",), SIZE).make(tmp_path / "gone.png", 0, 0)
