"""What the choices of framing, size and backbone are tried on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.finetuning import input_choice
from transferkit.training import depth_features


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let choices judge by 8, 16 and 24 pictures."""
    monkeypatch.setattr(input_choice, "LEAST_PICTURES", 10)
    monkeypatch.setattr(depth_features, "MOST_TRIED", 24)
    monkeypatch.setattr(depth_features, "FEW_TRIED", 8)
    monkeypatch.setattr(depth_features, "EACH_CLASS", 1)
    monkeypatch.setattr(depth_features, "BATCH", 4)


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 192 × 48 pixels that differ at the left end alone."""
    root, generator = tmp_path_factory.mktemp("strips"), np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        for number in range(22):
            pixels = generator.integers(90, 160, (48, 192, 3), dtype=np.uint8)
            pixels[:, :40] = 40 + 180 * label
            file = root / ("train" if number < 16 else "val") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root
