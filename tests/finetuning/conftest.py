"""What the choices of framing, size and backbone are tried on."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
def strips(tmp_path_factory: pytest.TempPathFactory, draw_strips: Callable[..., Path]) -> Path:
    """Two classes of 192 × 48 pixels that differ at the left end alone."""
    return draw_strips(tmp_path_factory.mktemp("strips"), (192, 48), 40, (16, 22))
