"""`finetune --folds`: the plan is trained again without each fold, and judged on it."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from transferkit import processes
from transferkit.config import Config
from transferkit.data.index import DatasetIndex, in_folds
from transferkit.data.shards import is_shards
from transferkit.errors import usage_error
from transferkit.events import Notice, Show
from transferkit.files.atomic_write import disk_error, make_inside, write_atomically
from transferkit.finetuning.summary import RunSummary
from transferkit.inference.out_of_fold import FOLDS, out_of_fold
from transferkit.runs.folder import RunFolder
from transferkit.verbs.report import intervals_of, write_card, write_report


def trains_folds(config: Config) -> bool:
    """Whether the folds need runs of their own: what only solves judges them all at once."""
    return config.data.folds is not None and not config.only_solves


def announce(config: Config, show: Show) -> None:
    """Say how much the folds add. Raises a usage error where they cannot be trained."""
    if not trains_folds(config):
        return
    if config.data.path is not None and is_shards(config.data.path):
        what = "--folds cannot part shards where stages train"
        raise usage_error(what, remedy="unpack them, or solve alone: --stages solve")
    number = config.data.folds
    show(Notice(f"after this run its plan is trained {number} times more, once without each fold"))


def fold_config(config: Config, index: DatasetIndex, folder: RunFolder, fold: int) -> Config:
    """Return the configuration of the run without a fold, from 0; its pictures are in a table.

    A class that is in this fold alone stays in training.
    """
    assert index.folds is not None
    held_out = index.folds == fold
    for label in np.unique(index.labels[held_out]):
        own = index.labels == label
        if held_out[own & (index.folds >= 0)].all():
            held_out &= ~own
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("path", "label", "split", "group"))
    groups = np.arange(len(index)) if index.groups is None else index.groups
    for position in np.flatnonzero(index.folds >= 0):
        split = "val" if held_out[position] else "train"
        label = index.classes[index.labels[position]]
        table.writerow((index.file(int(position)), label, split, groups[position]))
    file = folder.path / FOLDS / f"{fold + 1}.csv"
    try:
        make_inside(folder.path, file.parent)
        write_atomically(file, lambda opened: opened.write(text.getvalue().encode()))
    except OSError as error:
        raise disk_error(file.parent, error) from error
    by = "" if index.groups is None else "group"
    plain = replace(config.data, path=None, corrections=None, exclude=())
    kept = replace(plain, folds=None, group_by=by)
    return replace(config, data=replace(kept, manifest=file, allow_outside=True))


def folds_left(folder: RunFolder, number: int) -> list[tuple[int, Path]]:
    """Return the folds, from 0, whose runs are not finished, and where these are."""
    paths = [(fold, folder.path / FOLDS / str(fold + 1)) for fold in range(number)]
    return [(fold, path) for fold, path in paths if not (path / "summary.json").is_file()]


def parted(config: Config, index: DatasetIndex) -> DatasetIndex:
    """Return the pictures of a run, in folds."""
    assert config.data.folds is not None
    return in_folds(index, config.data.folds, config.training.seed)


def add_folds(folder: RunFolder, summary: RunSummary, show: Show) -> RunSummary:
    """Put what the folds say into the summary, the report and the card of a run."""
    figures = out_of_fold(folder).figures()
    whole = replace(summary, folds=figures)

    def write() -> RunSummary:
        folder.write_json("summary", whole.to_dict())
        write_report(folder, show)
        write_card(folder, intervals_of(folder))
        return whole

    return processes.from_first(write)
