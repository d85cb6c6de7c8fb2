"""What a run is built of: made once from the configuration, and never exchanged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from transferkit.backbones.chain import Chain
from transferkit.backbones.create import Backbone
from transferkit.backbones.head import Classifier
from transferkit.config import Config
from transferkit.data.index import DatasetIndex
from transferkit.stopwatch import Stopwatch
from transferkit.training.cache_handles import CacheHandles, CacheSettings
from transferkit.training.depth_features import KnownRows
from transferkit.training.material import Material
from transferkit.training.network import make_structure
from transferkit.training.stages import StagePlan, column_finder


@dataclass(frozen=True)
class Parts:
    """What a run is built of.

    plan: every stage of the configuration. settings: of the caches. handles: what is open of them.
    watch: counts the time from the start of the command. known: features that are there already.
    """

    config: Config
    backbone: Backbone
    classifier: Classifier
    chain: Chain
    plan: StagePlan
    material: Material
    settings: CacheSettings
    fabric: Any
    watch: Stopwatch
    handles: CacheHandles = field(default_factory=CacheHandles)
    known: KnownRows | None = None

    @property
    def index(self) -> DatasetIndex:
        """The pictures and their classes."""
        return self.material.index

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        device: torch.device = self.fabric.device
        return device

    @property
    def architecture(self) -> str:
        """The backbone's name and structure, for the keys of caches."""
        return f"{self.backbone.name} {make_structure(self.config.backbone)}"

    @cached_property
    def column_of(self) -> Callable[[str], int]:
        """Returns the plan's column of a parameter or module of the classifier."""
        return column_finder([group.modules for group in self.chain.groups])
