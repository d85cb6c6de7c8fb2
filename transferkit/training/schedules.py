"""Learning-rate schedules: pure functions of the progress, so resuming needs only the step."""

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """Half a cosine from 1 at progress 0 to 0 at progress 1.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine}


def with_warmup(schedule: Callable[[float], float], progress: float, warmup: float) -> float:
    """Rise linearly over the first `warmup` share of the progress, then run the schedule.

    progress: 0..1. Returns the multiplier of the peak rate, in 0..1.
    """
    if progress < warmup:
        return progress / warmup
    return schedule((progress - warmup) / (1 - warmup))
