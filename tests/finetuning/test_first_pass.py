"""What is measured on the training pictures, against numpy over all of them at once."""

import math
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.config import BackboneOptions, Config, Data, Training
from transferkit.events import Event, Notice
from transferkit.finetuning.first_pass import channel_statistics, shuffled_batches
from transferkit.finetuning.preparation import prepare
from transferkit.training.cache_filling import _base_key
from transferkit.training.parts import Parts

MLP = BackboneOptions(name="mlp", image_size=24, width=4, depth=1)


def finished(generator: Generator[Event, None, Any]) -> Any:
    """Run a generator of events to its end and return what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def started(config: Config) -> tuple[Parts, list[str]]:
    events: list[Event] = []
    parts = prepare(config, events.append)
    return parts, [event.text for event in events if isinstance(event, Notice)]


def test_mean_and_deviation_are_numpys_over_all_training_pixels(pictures: Path) -> None:
    parts, notices = started(Config(data=Data(pictures, normalize="dataset"), backbone=MLP))
    files = sorted((pictures / "train").glob("*/*.png"))
    opened = (Image.open(file).resize((24, 24), Image.Resampling.BICUBIC) for file in files)
    pixels = np.stack([np.asarray(image, dtype=np.float64) for image in opened]) / 255
    preprocessing = parts.backbone.preprocessing
    np.testing.assert_allclose(preprocessing.mean, pixels.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(preprocessing.std, pixels.std((0, 1, 2)), rtol=1e-3)
    assert any(f"mean {preprocessing.mean[0]:.3f}" in text for text in notices)
    material = parts.material
    images = np.concatenate([batch.numpy() for batch in shuffled_batches(material, 0)])
    scaled = parts.classifier.normalize(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(scaled.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std((0, 2, 3)), 1, atol=1e-5)


def test_none_leaves_values_of_0_to_1(pictures: Path) -> None:
    config = Config(data=Data(pictures, normalize="none"), backbone=MLP)
    parts, _ = started(config)
    images = next(shuffled_batches(parts.material, 0))
    expected = images.numpy().astype(np.float32) / 255
    np.testing.assert_array_equal(parts.classifier.normalize(images).numpy(), expected)
    usual, _ = started(replace(config, data=Data(pictures)))
    keys = [_base_key(each, 1) for each in (parts, usual)]
    assert keys[0] != keys[1]  # a cache of the one must not serve the other


def test_a_channel_without_variance_is_not_divided_by_zero(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for k, name in enumerate(("a", "b")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (24, 24), (0, 100 * k, 40 * i)).save(folder / f"{i}.png")
    parts, _ = started(Config(data=Data(tmp_path), backbone=MLP))
    mean, deviation = finished(channel_statistics(parts.material))
    assert mean == pytest.approx((0, 50 / 255, 20 / 255))
    assert deviation == pytest.approx((1 / 255, 50 / 255, 20 / 255))


def test_batches_are_mixed_equal_and_whole(pictures: Path) -> None:
    parts, _ = started(Config(data=Data(pictures), backbone=MLP, training=Training(seed=3)))
    material = parts.material
    labels = material.index.labels[material.train]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transferkit.finetuning.first_pass.MOST_IN_BATCH", 5)
        batches = [batch.numpy() for batch in shuffled_batches(material, 3)]
        again = [batch.numpy() for batch in shuffled_batches(material, 3)]
    assert [len(batch) for batch in batches] == [5, 5, 4, 4]
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    listed = [material.make((int(position), (0,)))[0] for position in material.train]
    shown = np.concatenate(batches)
    place = [next(i for i, view in enumerate(listed) if np.array_equal(view, v)) for v in shown]
    assert sorted(place) == list(range(18))
    assert all(len(set(labels[place[i : i + 5]])) > 1 for i in (0, 5))


def test_the_deviation_of_large_even_pictures_is_exact() -> None:
    pixels = np.full((1, 3, 1000, 1000), 200, np.uint8)
    pixels[..., :2, :2] = 255
    material: Any = SimpleNamespace(train=np.arange(64), make=lambda item: pixels)
    _, deviation = finished(channel_statistics(material))
    share = Fraction(4, 1_000_000)
    exact = math.sqrt(55**2 * share * (1 - share)) / 255  # of two values, p of them 55 higher
    assert deviation == (max(exact, 1 / 255),) * 3
    pixels[..., :64, :64] = 255
    share = Fraction(4096, 1_000_000)
    exact = math.sqrt(55**2 * share * (1 - share)) / 255
    _, deviation = finished(channel_statistics(material))
    assert deviation == pytest.approx((exact,) * 3, rel=4e-16)
