from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.config import BackboneOptions, Config, Pretraining
from transferkit.data.unlabeled import scan_unlabeled
from transferkit.pretraining.sizes import fit_size


@pytest.mark.parametrize(
    ("backbone", "side", "expected"),
    [
        ("resnet18", 28, 32),
        ("resnet18", 64, 64),
        ("resnet18", 65, 96),
        ("resnet18", 400, "auto"),
        ("cnn", 30, 32),
        ("cnn", 100, "auto"),
        ("mlp", 28, "auto"),
        ("vit_tiny_patch16_224", 40, 128),
    ],
)
def test_the_input_is_as_small_as_the_pictures(
    backbone: str, side: int, expected: int | str, tmp_path: Path
) -> None:
    for number in range(3):
        pixels = np.full((side, 2 * side, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    index = scan_unlabeled(tmp_path)
    config = Config(backbone=BackboneOptions(name=backbone))
    found, text = fit_size(config, index)
    assert found.backbone.image_size == expected
    assert bool(text) == (expected != "auto")
    given = replace(config, backbone=replace(config.backbone, image_size=128))
    assert fit_size(given, index) == (given, "")
    pretrained = replace(config, pretraining=Pretraining(init="pretrained"))
    assert fit_size(pretrained, index) == (pretrained, "")
