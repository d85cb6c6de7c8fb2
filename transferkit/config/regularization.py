"""Options against learning the training pictures by heart: penalties, limits, averages."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from transferkit.config.option import Option, Section


@dataclass(frozen=True)
class Regularization(Section):
    """Penalties on the weights, and a limit to them; never on biases and norms, but for l2_sp."""

    backbone_l1: Annotated[
        float, Ge(0), Option("--backbone-l1", "L1 penalty on the weights of unfrozen blocks.")
    ] = 0.0
    backbone_l2: Annotated[
        float, Ge(0), Option("--backbone-l2", "L2 penalty on the weights of unfrozen blocks.")
    ] = 0.0
    head_l1: Annotated[
        float, Ge(0), Option("--head-l1", "L1 penalty on the weights of the head.")
    ] = 0.0
    head_l2: Annotated[
        float, Ge(0), Option("--head-l2", "L2 penalty on the weights of the head.")
    ] = 0.0
    backbone_weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--backbone-weight-decay", "Weight decay of unfrozen blocks.", "--weight-decay"),
    ] = None
    head_weight_decay: Annotated[
        float | None,
        Ge(0),
        Option("--head-weight-decay", "Weight decay of the head.", "--weight-decay"),
    ] = None
    l2_sp: Annotated[
        float,
        Ge(0),
        Option("--l2-sp", "Penalty on how far unfrozen weights move from their start (L2-SP)."),
    ] = 0.0
    max_norm: Annotated[
        float,
        Ge(0),
        Option("--max-norm", "Max-norm constraint on each neuron's incoming weights; 0 is off."),
    ] = 0.0
    max_norm_of: Annotated[
        Literal["head", "all"],
        Option("--max-norm-of", "Constrain the head's layers, or all that train."),
    ] = "head"


@dataclass(frozen=True)
class Averaging(Section):
    """Averages of the weights, evaluated and kept in place of the last ones."""

    ema: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--ema", "Exponential moving average of the weights: decay, e.g. 0.99; 0 is off."),
    ] = 0.0
    swa: Annotated[
        float,
        Ge(0),
        Le(1),
        Option("--swa", "Average the weights over this last share of a stage's epochs."),
    ] = 0.0
    wise_ft: Annotated[
        Annotated[float, Ge(0), Le(1)] | Literal["auto"] | None,
        Option("--wise-ft", "Interpolate between before (0) and after (1) unfreezing.", "off"),
    ] = None
