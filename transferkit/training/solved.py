"""A solve that a run may end with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from transferkit.backbones.head import HeadDesign
from transferkit.closed_form.result import DepthClassifier
from transferkit.data.preprocessing import Preprocessing
from transferkit.training.material import Material


@dataclass(frozen=True)
class Solved:
    """A solve that is kept as the model. design: of its head; row: of metrics.csv.

    features: (M, D) of the pictures at `positions`. size: how it sees pictures.
    """

    classifier: DepthClassifier
    design: HeadDesign
    row: dict[str, Any]
    features: Tensor
    size: Preprocessing

    @staticmethod
    def positions(material: Material) -> np.ndarray:
        """Return the positions in the index (M,) of validation and then of reference pictures."""
        return np.concatenate([material.val, material.reference])
