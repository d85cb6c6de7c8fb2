"""The default input size of pretraining."""

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
"""Fewest patches along each side of a transformer's input."""
STEP = 32
"""The total stride of most backbones; they waste pixels of a size that is no multiple."""


def fit_size(config: Config, index: DatasetIndex) -> tuple[Config, str]:
    """Reduce the input to the size of the pictures, if a random backbone can take that.

    The size is the median shorter side, rounded up to a multiple of 32, and at least 8 patches of a
    transformer. Returns the configuration and a notice for the user, "" if nothing changed.
    """
    options = config.backbone
    if options.side_px is not None or config.pretraining.init == "pretrained":
        return config, ""
    default_px = SIZES_PX.get(options.name) or int(
        pretrained_config(resolve_name(options.name))["input_size"][-1]
    )
    shorter_px = float(np.median(index.sizes.min(axis=1)))
    size_px = STEP * max(1, int(np.ceil(shorter_px / STEP)))
    if patch := PATCH.search(options.name):
        size_px = max(size_px, PATCHES * int(patch[1]))
    if size_px >= default_px:
        return config, ""
    if options.name not in SIZES_PX:
        name = resolve_name(options.name)
        try:
            check_size(name, pretrained_config(name), size_px)
        except UserError:
            return config, ""
    text = f"the pictures are {shorter_px:.0f} px: the input is {size_px} px, not {default_px}"
    config = replace(config, backbone=replace(options, image_size=size_px))
    return config, f"{text} (--image-size {default_px} enlarges them)"
