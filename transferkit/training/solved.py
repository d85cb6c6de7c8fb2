"""A solve that a run may end with."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transferkit.backbones.head import HeadDesign
from transferkit.closed_form.result import DepthClassifier


@dataclass(frozen=True)
class Solved:
    """A solve that is kept as the model. design: of its head; row: of metrics.csv.

    features: (M, D) of the validation pictures and then of the training pictures, in their order.
    """

    classifier: DepthClassifier
    design: HeadDesign
    row: dict[str, Any]
    features: Tensor
