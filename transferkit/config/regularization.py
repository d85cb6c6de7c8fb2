"""Options against learning the training pictures by heart: penalties, limits, averages."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from transferkit.config.option import Option, Section


@dataclass(frozen=True)
class Regularization(Section):
    """Penalties on the weights, and a limit to them; never on biases and norms, but for l2_sp."""

    backbone_l1: Annotated[
        float, Ge(0), Option("--backbone-l1", "L1 penalty on unfrozen blocks, in the loss.")
    ] = 0.0
    backbone_l2: Annotated[
        float, Ge(0), Option("--backbone-l2", "L2 penalty on unfrozen blocks, in the loss.")
    ] = 0.0
    head_l1: Annotated[
        float, Ge(0), Option("--head-l1", "L1 penalty on the new layers, in the loss.")
    ] = 0.0
    head_l2: Annotated[
        float, Ge(0), Option("--head-l2", "L2 penalty on the new layers, in the loss.")
    ] = 0.0
    backbone_weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--backbone-weight-decay", "In place of --weight-decay for unfrozen blocks."),
    ] = None
    head_weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--head-weight-decay", "In place of --weight-decay for the new layers."),
    ] = None
    l2_sp: Annotated[
        float,
        Ge(0),
        Option("--l2-sp", "L2 penalty on how far unfrozen blocks move from their start."),
    ] = 0.0
    max_norm: Annotated[
        float,
        Ge(0),
        Option("--max-norm", "Largest norm of a neuron's incoming weights; 0 is off."),
    ] = 0.0
    max_norm_of: Annotated[
        Literal["head", "all"],
        Option("--max-norm-of", "What max-norm holds: the new layers, or all that trains."),
    ] = "head"


@dataclass(frozen=True)
class Averaging(Section):
    """Averages of the weights, evaluated and kept in place of the last ones."""

    ema: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--ema", "Decay of a moving average of the weights, e.g. 0.99; 0 is off."),
    ] = 0.0
    swa: Annotated[
        float,
        Ge(0),
        Le(1),
        Option("--swa", "Share of a stage's epochs, its last, whose weights are averaged; 0: off."),
    ] = 0.0
    wise_ft: Annotated[
        Annotated[float, Ge(0), Le(1)] | Literal["auto"] | None,
        Option("--wise-ft", "At the end, go only so far from before unfreezing; auto: try which."),
    ] = None
