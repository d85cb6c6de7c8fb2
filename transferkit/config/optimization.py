"""Options of the optimisation: the optimiser, the schedule of its rate, the clipping."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.option import Option, Section

OPTIMIZER = "--optimizer"


@dataclass(frozen=True)
class OptimizerOptions(Section):
    """How gradients become steps. None is the optimiser's own default."""

    name: Annotated[
        str, Option("--optimizer", "See `transferkit explain optimizers`; also timm:NAME.")
    ] = "adamw"
    momentum: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--momentum", "Momentum of momentum, nesterov and some of timm's [0.9]."),
    ] = None
    beta1: Annotated[
        float | None, Ge(0), Lt(1), Option("--beta1", "Decay of Adam's mean gradient [0.9].")
    ] = None
    beta2: Annotated[
        float | None, Ge(0), Lt(1), Option("--beta2", "Decay of Adam's mean square [0.999].")
    ] = None
    rho: Annotated[
        float | None, Ge(0), Lt(1), Option("--rho", "Decay of RMSProp's mean square [0.99].")
    ] = None
    eps: Annotated[
        float | None, Gt(0), Le(1), Option("--eps", "Added to the root that divides [1e-8].")
    ] = None


@dataclass(frozen=True)
class ScheduleOptions(Section):
    """How the learning rate moves. Shares are of a stage, or of the run with scope = run."""

    name: Annotated[
        Literal[
            "constant",
            "linear",
            "cosine",
            "power",
            "exponential",
            "piecewise",
            "1cycle",
            "performance",
        ],
        Option("--schedule", "How the rate falls after the warm-up."),
    ] = "cosine"
    scope: Annotated[
        Literal["stage", "run"],
        Option("--schedule-scope", "Whether it starts anew in every stage or spans them all."),
    ] = "stage"
    every: Annotated[
        Literal["step", "epoch"], Option("--schedule-every", "When the rate moves.")
    ] = "step"
    power: Annotated[
        float, Gt(0), Le(10), Option("--schedule-power", "Exponent of the power schedule.")
    ] = 1.0
    period: Annotated[
        float,
        Gt(0),
        Option("--schedule-period", "Share in which exponential falls to 0.1, power to a half."),
    ] = 0.5
    values: Annotated[
        tuple[Annotated[float, Ge(0), Le(1)], ...],
        Option("--schedule-values", "Piecewise: shares of the peak rate, e.g. 1,0.1,0.01."),
    ] = (1.0, 0.1, 0.01)
    boundaries: Annotated[
        tuple[Annotated[float, Gt(0), Lt(1)], ...],
        Option("--schedule-boundaries", "Piecewise: shares where the next value begins."),
    ] = (0.5, 0.75)
    patience: Annotated[
        int, Ge(0), Option("--plateau-patience", "Performance: epochs without gain that it waits.")
    ] = 2
    factor: Annotated[
        float, Gt(0), Lt(1), Option("--plateau-factor", "Performance: what the rate falls to then.")
    ] = 0.5
    cycle_rise: Annotated[
        float,
        Gt(0),
        Le(0.5),
        Option("--cycle-rise", "Of 1cycle: share in which it rises, and again in which it falls."),
    ] = 0.45
    cycle_start: Annotated[
        float,
        Gt(0),
        Le(1),
        Option("--cycle-start", "Of 1cycle: first rate as share of the peak."),
    ] = 0.1
    cycle_end: Annotated[
        float, Ge(0), Le(1), Option("--cycle-end", "Of 1cycle: last rate, as a share of the peak.")
    ] = 0.001
    momentum_low: Annotated[
        float, Ge(0), Lt(1), Option("--cycle-momentum-low", "Of 1cycle: momentum at the peak rate.")
    ] = 0.85
    momentum_high: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--cycle-momentum-high", "Of 1cycle: momentum at the start and the end."),
    ] = 0.95


@dataclass(frozen=True)
class Clipping(Section):
    """Limits on gradients; 0 is off. One of them at a time."""

    value: Annotated[
        float, Ge(0), Option("--clip-value", "Largest gradient of a single weight; 0 is off.")
    ] = 0.0
    norm: Annotated[
        float, Ge(0), Option("--clip-norm", "Largest norm of all gradients together; 0 is off.")
    ] = 0.0
    adaptive: Annotated[
        float,
        Ge(0),
        Option(
            "--clip-adaptive",
            "Largest ratio of a neuron's gradient norm to its weights', e.g. 0.01; 0 is off.",
        ),
    ] = 0.0
