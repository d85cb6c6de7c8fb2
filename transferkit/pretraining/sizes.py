"""How large the input of a pretraining is, where the user does not say."""

import re
from dataclasses import replace

import numpy as np

from transferkit.backbones.create import check_size, pretrained_config, resolve_name
from transferkit.backbones.scratch import SIZES_PX
from transferkit.config import Config
from transferkit.data.index import DatasetIndex
from transferkit.errors import UserError

PATCH = re.compile(r"patch(\d+)")
PATCHES = 8
"""Along each side of a transformer's input; fewer leave little to attend to."""
STEP = 32
"""What most backbones halve away; a size that is no multiple wastes rows of pixels."""


def fit_size(config: Config, index: DatasetIndex) -> tuple[Config, str]:
    """Make the input as small as the pictures are, where a random backbone can take that.

    The size is the least multiple of 32 that the median shorter side does not exceed, and eight
    patches of a transformer. Returns the
    configuration, and what to tell; "" where all stays as it is.
    """
    options = config.backbone
    if options.image_size is not None or config.pretraining.init == "pretrained":
        return config, ""
    usual = usual_size(options.name)
    shorter = float(np.median(index.sizes.min(axis=1)))
    fitting = STEP * max(1, int(np.ceil(shorter / STEP)))
    if patch := PATCH.search(options.name):
        fitting = max(fitting, PATCHES * int(patch[1]))
    if fitting >= usual:
        return config, ""
    if options.name not in SIZES_PX:
        name = resolve_name(options.name)
        try:
            check_size(name, pretrained_config(name), fitting)
        except UserError:
            return config, ""
    text = f"the pictures are {shorter:.0f} px: the input is {fitting} px, not {usual}"
    config = replace(config, backbone=replace(options, image_size=fitting))
    return config, f"{text} (--image-size {usual} enlarges them)"


def usual_size(name: str) -> int:
    """Return the input's side in pixels that a backbone has by itself."""
    if name in SIZES_PX:
        return SIZES_PX[name]
    return int(pretrained_config(resolve_name(name))["input_size"][-1])
