"""What is frozen stays as it was through whole runs, whatever the optimiser."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from transferkit.backbones.create import create_backbone
from transferkit.training.optimizers import OPTIMIZERS

BELOW = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")
"""Of test_efficientnet, below its two top block groups."""
MOMENTUMS = {"momentum": "momentum", "nesterov": "momentum"}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize(
    ("name", "cached"), [*((n, False) for n in [*OPTIMIZERS, "timm:lion"]), ("momentum", True)]
)
def test_frozen_blocks_keep_every_bit_through_a_run(
    name: str, cached: bool, train_with: Callable[..., Path]
) -> None:
    """With momentum, weight decay, penalties and a moving average; statistics included."""
    options = {
        "optimizer.name": name,
        "training.weight_decay": 0.1,
        "averaging.ema": 0.5,
        "cache.enabled": cached,
        "stages": "1:1@1e-2,2:1@1e-2",
        "training.restore_best": False,
    }
    if name in MOMENTUMS:
        options[f"optimizer.{MOMENTUMS[name]}"] = 0.8
    run = train_with(options)
    after = load_file(run / "model.safetensors")
    before = create_backbone("test_efficientnet", pretrained=False, image_size=32).model
    for key, tensor in before.state_dict().items():
        same = torch.equal(bits(after[f"backbone.{key}"]), bits(tensor))
        if key.startswith(BELOW):
            assert same, key
        elif key.endswith("weight"):
            assert not same, key
