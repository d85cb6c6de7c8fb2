"""What the monitored figures of a run say about its health, each with what to try.

The limits are far outside of what was seen in networks that train: there every block's gradient was
between 0.001 and 30 times the head's, and deviations of activations were below 50.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from transferkit.config import Config
from transferkit.evaluation.layer_plots import suggested_clip
from transferkit.finetuning.cures import Cure, cures, next_command

Row = Mapping[str, Any]

HEAD = "head"

VANISHED = 1e-4  # of the head's gradient
EXPLODED = 1e3  # times the head's gradient
LARGEST_ACTIVATION = 1e4  # standard deviation
MOST_SATURATED = 0.4  # of a block's logistic and tanh values
MOST_DEAD = 0.5  # of a block's rectifiers
LARGEST_STEP = 0.1  # of the weights, in one step
LARGEST_LOSS = 20  # times that of guessing

Finding = tuple[str, str]
"""An illness of `cures`, and the line that says where it was seen."""


def diagnose(
    monitored: Sequence[Row], epochs: Sequence[Row], num_classes: int, config: Config, run: Path
) -> list[str]:
    """Return a line for everything that looks ill, stage by stage; none for a healthy run.

    Each says what to try that is not in force yet; the last line is the command to run next.
    monitored: rows of monitoring.csv. epochs: rows of metrics.csv. num_classes: K;
    guessing has a loss of ln K.
    Source: Glorot and Bengio, AISTATS 2010 (gradients and saturation over depth); Lu et al., "Dying
    ReLU and Initialization", 2019; Karpathy, CS231n notes, "Ratio of weights:updates".
    """
    lines: list[str] = []
    firsts: list[Cure] = []
    for stage, rows in groupby(monitored, key=lambda row: row["stage"]):
        members = list(rows)
        measured = _by_group(members)
        own = [row for row in epochs if row["stage"] == stage]
        found = [*_gradients(measured), *_units(measured), *_sizes(measured)]
        found += _loss([row["train_loss"] for row in own], num_classes)
        for ill, line in found if own else ():
            name = own[0]["stage_name"]
            tries = cures(ill, config, name, suggested_clip(members))
            advice = ", ".join(f"{what} ({flags})" for flags, what in tries)
            lines.append(f"stage {name}: {line}: {ill}" + (f"; try {advice}" if tries else ""))
            firsts += tries[:1]
    return [*lines, f"next: {next_command(run, config, firsts)}"] if firsts else lines


def _by_group(rows: list[Row]) -> dict[str, list[Row]]:
    """Return each group's rows, the epochs in order.

    Left out are epochs in which no group but the head had a gradient: a head that starts at zero
    passes none down in its first step.
    """
    silent = set()
    for epoch, members in groupby(rows, key=lambda row: row["epoch"]):
        *below, _ = [row.get("gradient_norm", 0.0) for row in members]
        if below and not any(below):
            silent.add(epoch)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["epoch"] not in silent:
            groups.setdefault(row["group"], []).append(row)
    return groups


def _typical(rows: Sequence[Row], name: str) -> float:
    """Return the median over the epochs of a reading; NaN when there is none."""
    values = [row[name] for row in rows if name in row]
    return median(values) if values else math.nan


def _gradients(measured: Mapping[str, list[Row]]) -> Iterator[Finding]:
    top = _typical(measured.get(HEAD, []), "gradient_norm")
    if not top > 0:
        return
    shares = {
        name: _typical(rows, "gradient_norm") / top
        for name, rows in measured.items()
        if name != HEAD
    }
    vanished = {name: share for name, share in shares.items() if share < VANISHED}
    exploded = {name: share for name, share in shares.items() if share > EXPLODED}
    if vanished:
        name = min(vanished, key=lambda name: vanished[name])
        share = _power(vanished[name])
        yield "vanishing", f"{name} receives {share} of the head's gradient{_more(vanished)}"
    if exploded:
        name = max(exploded, key=lambda name: exploded[name])
        share = _power(exploded[name])
        yield "exploding", f"{name} receives {share} times the head's gradient{_more(exploded)}"


def _units(measured: Mapping[str, list[Row]]) -> Iterator[Finding]:
    saturated = _above(measured, "saturated", MOST_SATURATED)
    dead = _above(measured, "dead", MOST_DEAD)
    if saturated:
        name = max(saturated, key=lambda name: saturated[name])
        share = f"{saturated[name]:.0%}"
        yield "vanishing", f"{share} of the units of {name} are saturated{_more(saturated)}"
    if dead:
        name = max(dead, key=lambda name: dead[name])
        yield "dead", f"{dead[name]:.0%} of the ReLUs of {name} never fire{_more(dead)}"


def _sizes(measured: Mapping[str, list[Row]]) -> Iterator[Finding]:
    large = _above(measured, "activation_std", LARGEST_ACTIVATION)
    fast = _above({n: r for n, r in measured.items() if n != HEAD}, "update_ratio", LARGEST_STEP)
    if large:
        name = max(large, key=lambda name: large[name])
        deviation = _power(large[name])
        yield "exploding", f"activations of {name} have a deviation of {deviation}{_more(large)}"
    if fast:
        name = max(fast, key=lambda name: fast[name])
        share = f"{fast[name]:.0%} (0.1 % is usual)"
        yield "too fast", f"a step moves the weights of {name} by {share}{_more(fast)}"


def _loss(losses: Sequence[float], num_classes: int) -> Iterator[Finding]:
    chance = math.log(num_classes)
    if losses and max(losses) > LARGEST_LOSS * chance:
        epoch = losses.index(max(losses)) + 1
        loss = f"the training loss was {max(losses):.3g} in epoch {epoch}"
        yield "exploding", f"{loss}, guessing has {chance:.2g}"


def _above(measured: Mapping[str, list[Row]], name: str, limit: float) -> dict[str, float]:
    """Return the groups whose typical reading is above a limit, with the reading."""
    typical = {group: _typical(rows, name) for group, rows in measured.items()}
    return {group: value for group, value in typical.items() if value > limit}


def _power(value: float) -> str:
    """Write a size by its power of ten: 3e-6, 1e11; nothing for 0."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "nothing"


def _more(affected: Mapping[str, float]) -> str:
    others = len(affected) - 1
    return f" ({others} more block{'s' if others > 1 else ''} likewise)" if others else ""
