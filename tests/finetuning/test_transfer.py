from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transferkit.backbones.create import create_backbone
from transferkit.data.framing import framed
from transferkit.finetuning.transfer import transfer_notice
from transferkit.recipes.reading import load_config
from transferkit.training.stages import make_plan

GROUPS = ("stem", "blocks.1", "blocks.2", "blocks.3")


@pytest.mark.parametrize(
    ("given", "crop", "expected"),
    [
        ({"stages": "head:1"}, "center",
         "500×400 → resize 168, crop 160 · 1,000-class output replaced by 50 classes · "
         "stem to blocks.3 stay frozen"),
        ({"stages": "solve,2:3"}, "squash",
         "500×400 → squashed to 160 px · 1,000-class output replaced by 50 classes · "
         "stem to blocks.1 stay frozen"),
        ({"stages": "head:1,3:3"}, "center",
         "500×400 → resize 168, crop 160 · 1,000-class output replaced by 50 classes · "
         "stem stays frozen"),
        ({"stages": "all:3", "backbone.pretrained": False}, "center",
         "500×400 → resize 168, crop 160 · new output of 50 classes · all blocks train"),
    ],
)  # fmt: skip
def test_the_transfer_in_a_line(given: dict[str, Any], crop: str, expected: str) -> None:
    backbone = create_backbone("test_resnet", pretrained=False)
    backbone.preprocessing = framed(backbone.preprocessing, crop, None)
    config = load_config(None, (), given)
    sizes = np.array([[500, 400], [500, 400], [640, 400]])
    index: Any = SimpleNamespace(sizes=sizes, classes=tuple(map(str, range(50))))
    notice = transfer_notice(config, index, backbone, make_plan(config, GROUPS))
    assert notice.text == f"transfer: {expected}"
