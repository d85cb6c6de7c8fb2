"""Options against learning the training pictures by heart: averages of the weights."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from transferkit.config.option import Option, Section


@dataclass(frozen=True)
class Averaging(Section):
    """Averages of the weights, evaluated and kept in place of the last ones."""

    ema: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--ema", "Decay of a moving average of the weights, e.g. 0.99; 0 is off."),
    ] = 0.0
