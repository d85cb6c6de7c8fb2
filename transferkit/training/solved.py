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

    features: (M, D) of the pictures at `positions`. size: how it sees pictures. left_out: logits
    (N, K) and labels (N,) of training pictures, each by the solve without it; None where the
    backbone had learned their labels, or validation contradicts them. out_of_fold: logits (M, K) of
    the validation pictures by the solve without their fold; None without folds.
    """

    classifier: DepthClassifier
    design: HeadDesign
    row: dict[str, Any]
    features: Tensor
    size: Preprocessing
    left_out: dict[str, Tensor] | None = None
    out_of_fold: Tensor | None = None

    @staticmethod
    def positions(material: Material) -> np.ndarray:
        """Return the positions in the index (M,) of validation and then of reference pictures."""
        return np.concatenate([material.val, material.reference])
