"""What is transferred from a backbone to a task of one's own, in one line."""

import math

import numpy as np

from transferkit.backbones.create import Backbone
from transferkit.config import Config
from transferkit.data.framing import framing
from transferkit.data.index import DatasetIndex
from transferkit.events import Notice
from transferkit.training.stages import StagePlan


def transfer_notice(
    config: Config, index: DatasetIndex, backbone: Backbone, plan: StagePlan
) -> Notice:
    """Say what becomes of the pictures, of the output and of the blocks."""
    size, count = backbone.preprocessing, len(index.classes)
    width, height = np.median(index.sizes, axis=0).astype(int) if len(index.sizes) else (0, 0)
    shown = framing(size)
    if size.crop_mode == "center":
        resized = math.floor(min(size.height_px, size.width_px) / size.crop_pct)
        shown = f"resize {resized}, crop {size.width_px}"
    known = (getattr(backbone.model, "pretrained_cfg", None) or {}).get("num_classes", 0)
    pretrained = known and not config.backbone.starts_random
    output = f"{known:,}-class output replaced by {count:,} classes"
    lowest = min(stage.boundary for stage in plan.stages)
    frozen = f"stem to {plan.groups[lowest - 1]} stay" if lowest > 1 else "stem stays"
    parts = (
        f"{width}×{height} → {shown}",
        output if pretrained else f"new output of {count:,} classes",
        f"{frozen} frozen" if lowest else "all blocks train",
    )
    return Notice("transfer: " + " · ".join(parts))
