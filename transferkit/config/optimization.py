"""Options of the optimisation: the optimiser, the schedule of its rate, the clipping."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.option import Option, Section

SCHEDULE_USES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": (),
    "cosine": (),
    "power": ("power", "period"),
    "exponential": ("period",),
    "piecewise": ("values", "boundaries"),
    "1cycle": ("cycle_rise", "cycle_start", "cycle_end", "momentum_low", "momentum_high"),
    "performance": ("patience", "factor"),
}
"""Schedule -> the options that it reads besides scope and every (performance: besides scope)."""

if TYPE_CHECKING:
    ScheduleName = str
else:
    ScheduleName = Literal[tuple(SCHEDULE_USES)]


@dataclass(frozen=True)
class OptimizerOptions(Section):
    """How gradients become steps. None is the optimiser's own default."""

    name: Annotated[
        str,
        Option("--optimizer", "Optimiser (see `transferkit explain optimizers`), or timm:NAME."),
    ] = "adamw"
    momentum: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--momentum", "Momentum of momentum, nesterov and some of timm's.", "0.9"),
    ] = None
    beta1: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--beta1", "Adam: decay rate of the first moment.", "0.9"),
    ] = None
    beta2: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--beta2", "Adam: decay rate of the second moment.", "0.999"),
    ] = None
    rho: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Option("--rho", "RMSProp: decay rate of the mean squared gradient.", "0.99; Keras 0.9"),
    ] = None
    eps: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option("--eps", "Term added to the denominator for numerical stability.", "1e-8"),
    ] = None


@dataclass(frozen=True)
class ScheduleOptions(Section):
    """How the learning rate moves. Shares are of a stage, or of the run with scope = run."""

    name: Annotated[
        ScheduleName,
        Option("--schedule", "Learning-rate schedule after the warm-up."),
    ] = "cosine"
    scope: Annotated[
        Literal["stage", "run"],
        Option("--schedule-scope", "Restart the schedule in every stage, or span the whole run."),
    ] = "stage"
    every: Annotated[
        Literal["step", "epoch"],
        Option("--schedule-every", "Update the learning rate every step or every epoch."),
    ] = "step"
    power: Annotated[float, Gt(0), Le(10), Option("--schedule-power", "power: its exponent.")] = 1.0
    period: Annotated[
        float,
        Gt(0),
        Option("--schedule-period", "Share in which exponential falls to 0.1, power to 1/2."),
    ] = 0.5
    values: Annotated[
        tuple[Annotated[float, Ge(0), Le(1)], ...],
        Option("--schedule-values", "piecewise: fractions of the peak rate."),
    ] = (1.0, 0.1, 0.01)
    boundaries: Annotated[
        tuple[Annotated[float, Gt(0), Lt(1)], ...],
        Option("--schedule-boundaries", "piecewise: where each next value begins."),
    ] = (0.5, 0.75)
    patience: Annotated[
        int, Ge(0), Option("--plateau-patience", "performance: epochs without improvement.")
    ] = 2
    factor: Annotated[
        float,
        Gt(0),
        Lt(1),
        Option("--plateau-factor", "performance: factor by which the rate is reduced."),
    ] = 0.5
    cycle_rise: Annotated[
        float,
        Gt(0),
        Le(0.5),
        Option("--cycle-rise", "1cycle: share of the rise, and again of the fall."),
    ] = 0.45
    cycle_start: Annotated[
        float,
        Gt(0),
        Le(1),
        Option("--cycle-start", "1cycle: initial learning rate as a fraction of the peak."),
    ] = 0.1
    cycle_end: Annotated[
        float,
        Ge(0),
        Le(1),
        Option("--cycle-end", "1cycle: final learning rate as a fraction of the peak."),
    ] = 0.001
    momentum_low: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--cycle-momentum-low", "1cycle: momentum at the peak learning rate."),
    ] = 0.85
    momentum_high: Annotated[
        float,
        Ge(0),
        Lt(1),
        Option("--cycle-momentum-high", "1cycle: momentum at the start and at the end."),
    ] = 0.95


@dataclass(frozen=True)
class Clipping(Section):
    """Limits on gradients; 0 is off. One of them at a time."""

    value: Annotated[
        float,
        Ge(0),
        Option("--clip-value", "Clip each component of the gradient to this magnitude; 0 is off."),
    ] = 0.0
    norm: Annotated[
        float,
        Ge(0),
        Option("--clip-norm", "Clip the global gradient norm to this value; 0 is off."),
    ] = 0.0
    adaptive: Annotated[
        float,
        Ge(0),
        Option("--clip-adaptive", "Largest gradient norm per weight norm, e.g. 0.01; 0 is off."),
    ] = 0.0
