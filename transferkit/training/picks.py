"""Which pictures and views the batches of an epoch hold."""

import math

import numpy as np

from transferkit import processes
from transferkit.data.loader import CLEAN, epoch_order, epoch_views
from transferkit.training.material import Pick
from transferkit.training.run import Run

CLEAN_SHARE = 6
MOST_CLEAN_EPOCHS = 5
"""A run begins with the clean views of the pictures for a sixth of its first stage."""


def epoch_picks(run: Run, num_views: int | None) -> list[Pick]:
    """Return the positions and view numbers of every batch of the epoch that the run stands at.

    num_views: of the stage's source.
    """
    epoch, settings = run.state.epoch, run.settings
    labels = run.material.index.labels[run.material.train]
    seed = settings.seed + 1000 * (run.state.stage + 1)
    order = epoch_order(labels, settings.balance, seed, epoch)
    turn = epoch if num_views else len(run.state.rows)  # new views also after other stages
    views = epoch_views(len(labels), num_views, seed, turn)
    if num_views and epoch < clean_epochs(run):
        views = np.full(len(labels), CLEAN)
    return [(pick, views[pick]) for pick in batches(order, settings.batch_size)]


def clean_epochs(run: Run) -> int:
    """Return how many of the stage's first epochs see the clean views alone.

    The first stage of a run with a frozen trunk begins with what is computed first, so that its
    first results do not wait for all varied views. A budget of time plans without that.
    """
    stage = run.plan.stages[run.state.stage]
    if run.state.stage or not stage.boundary or run.budget is not None:
        return 0
    return min(MOST_CLEAN_EPOCHS, stage.epochs // CLEAN_SHARE)


def cut_short(run: Run, drawn: list[Pick]) -> tuple[list[Pick], int]:
    """Return the batches of an epoch that are to run, and how many a whole one has."""
    part = run.epochs[run.state.stage] - run.state.epoch
    return drawn[: math.ceil(min(1.0, part) * len(drawn))], len(drawn)


def own_shares(picks: list[Pick]) -> list[Pick]:
    """Return this process's share of every batch."""
    return [(processes.share(positions), processes.share(views)) for positions, views in picks]


def batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an epoch's order (N,) into batches; a single left-over picture joins the last one.

    Batch normalisation cannot train on one value per channel. Every process needs a picture, too.
    """
    picks = [order[i : i + size] for i in range(0, len(order), size)]
    if size > 1 and len(picks) > 1 and len(picks[-1]) < max(2, processes.count()):
        picks[-2:] = [np.concatenate(picks[-2:])]
    return picks
