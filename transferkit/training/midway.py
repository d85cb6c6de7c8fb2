"""Where a run stands within an epoch, so that a long one need not begin again."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from transferkit import processes
from transferkit.stopping import Stop
from transferkit.training.checkpoints import epoch_start, save_last, write_unsaved
from transferkit.training.monitor import Monitor
from transferkit.training.run import Run
from transferkit.training.updates import Updater


@dataclass
class Tally:
    """What the steps of an epoch add up to.

    steps: taken. loss: sum over pictures; right: answered so; clipped: steps whose gradients were;
    seen: pictures. seconds: of the steps before an interruption.
    """

    steps: int = 0
    loss: float = 0.0
    right: int = 0
    clipped: int = 0
    seen: int = 0
    seconds: float = 0.0


def take_up(run: Run, monitor: Monitor, generator: np.random.Generator) -> Tally:
    """Return where an epoch begins: at its start, or where the run was saved within it.

    Puts the random numbers of torch and of the generator where they were, and what was monitored.
    """
    saved, run.state.midway = run.state.midway, None
    if saved is None:
        return Tally()
    set_random_state(saved["random"], run.fabric.device)
    generator.bit_generator.state = saved["generator"]
    monitor.load_state_dict(saved["monitor"])
    return Tally(**saved["tally"])


def seconds_before(midway: dict[str, Any] | None) -> float:
    """Return what the steps took of an epoch that a run goes on within; 0 at its start."""
    return float(midway["tally"]["seconds"]) if midway else 0.0


def save_midway(
    run: Run, updater: Updater, monitor: Monitor, generator: np.random.Generator, tally: Tally
) -> None:
    """Save where the run stands after a step, and what the epoch keeps beside it."""
    start = epoch_start(run)
    run.state.midway = {
        "random": random_state(run.fabric.device),
        "generator": generator.bit_generator.state,
        "monitor": monitor.state_dict(),
        "tally": asdict(tally),
    }
    save_last(run, updater, start)
    run.state.midway = None
    write_unsaved(run)


def is_time(stop: Stop) -> bool:
    """Whether to save within an epoch, which one process alone does.

    Several go back to the last finished epoch, because each has random numbers of its own. Raises
    KeyboardInterrupt where they are to leave.
    """
    if processes.count() == 1:
        return stop.is_time()
    if stop.asked:
        raise KeyboardInterrupt
    return False


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's random numbers, and of those of a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put torch's random numbers where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
