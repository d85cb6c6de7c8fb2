"""When the loss is no number any more: stop and say so, or go back and learn at half the rate."""

import math

from transferkit.errors import UserError
from transferkit.events import Notice
from transferkit.training.checkpoints import restore, restore_epoch, save_last
from transferkit.training.run import Run
from transferkit.training.stages import PlannedStage
from transferkit.training.updates import Updater
from transferkit.units import rate_text

MOST_HALVINGS = 5
"""Of one stage; a 32nd of a rate that a person chose is another choice, not a correction."""


class Diverged(Exception):
    """The loss became NaN or infinite. loss: what it became. step: of the stage, from 0."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(loss, step)
        self.loss = loss
        self.step = step


class DivergedForGood(UserError):
    """A run diverged that is to stop then, or was rewound too often."""


def checked(loss: float, step: int) -> float:
    """Return the loss of a stage's step, counted from 0. Raises Diverged when it is no number."""
    if math.isfinite(loss):
        return loss
    raise Diverged(loss, step)


def halved(lr: float, halvings: int) -> float:
    """Return a learning rate after so many halvings."""
    return lr * 0.5**halvings


def rewind(run: Run, stage: PlannedStage, updater: Updater, problem: Diverged) -> Notice:
    """Restore the last good checkpoint and halve the stage's learning rate; say so.

    Good is the last finished epoch, or the stage's start; when that diverged again, the best
    weights so far with a new optimiser.
    What was restored is saved with the new rate, so that a resumed run goes on alike.
    Raises DivergedForGood when the run is to stop on divergence, or was rewound too often.
    """
    state, lr = run.state, halved(stage.lr, run.state.halvings)
    name = "NaN" if math.isnan(problem.loss) else "infinite"
    what = f"the loss became {name} at step {problem.step + 1} of stage {stage.name}"
    if run.settings.on_divergence == "stop" or state.halvings == MOST_HALVINGS:
        raise stopped(run, what, stage, lr)
    repeated = state.rewound_at == state.epoch and state.epoch > 0
    checkpoint = restore_epoch(run)
    if repeated:
        restore(run, "best")
    fresh = repeated or checkpoint["updater"] is None
    if fresh:
        updater.restart()
    else:
        updater.load_state_dict(checkpoint["updater"])
    state.halvings += 1
    state.rewound_at = state.epoch
    place = f"after epoch {state.epoch}" if state.epoch else "the stage's start"
    restored = "the best weights" if repeated else f"the last good checkpoint ({place})"
    halving = f"halved the learning rate to {rate_text(lr / 2)}"
    text = f"{what}: exploding; restored {restored}, {halving}"
    state.divergences.append(text)
    save_last(run) if fresh else save_last(run, updater)
    return Notice(text, warning=True)


def stopped(run: Run, what: str, stage: PlannedStage, lr: float) -> DivergedForGood:
    """Return what a run that diverged for good says. lr: the head's rate when it did."""
    halvings = run.state.halvings
    where = f"the head's peak learning rate there is {rate_text(lr)}"
    remedy = "lower --lr or --unfrozen-lr"
    if halvings:
        where += f", halved {halvings} times from {rate_text(stage.lr)}"
    else:
        remedy += ", or go back and halve it when this happens: --on-divergence rewind"
    return DivergedForGood(what, where, remedy)
