"""A plan that begins with pretraining: `--stages "simclr:20m, solve, 1:12"`, in one run folder."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace

from transferkit import processes
from transferkit.config import BackboneOptions, Config
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, silent
from transferkit.finetuning.pictures import read_index
from transferkit.recipes.from_run import OF_THE_RUN_ALONE
from transferkit.recipes.reading import config_of, to_toml
from transferkit.runs.folder import PRETRAINING, RECIPE, RunFolder, open_run
from transferkit.stopwatch import Stopwatch
from transferkit.verbs import pretrain

TRAIN_FOLDERS = ("train", "training")


@contextlib.contextmanager
def part_of(folder: RunFolder) -> Iterator[None]:
    """Let what goes wrong in a run inside another one's folder be taken up with that one."""
    try:
        yield
    except UserError as problem:
        problem.remedy = f"go on with all of it: transferkit finetune --resume {folder.path}"
        raise


def pretrained_first(config: Config, folder: RunFolder, show: Show) -> Config:
    """Pretrain where the plan begins with that, unless it is done; return the plan that follows.

    The labelled pictures are read before, so that nothing is wrong with them afterwards. Raises
    UserError as `pretrain` does.
    """
    if not config.pretrains:
        return config
    path = folder.path / PRETRAINING
    if not (path / "summary.json").is_file():
        own = pretraining_config(config)
        if not (path / RECIPE).is_file():
            plain = replace(config.data, group_by="")  # likeness would need the backbone
            read_index(replace(config, data=plain), silent, Stopwatch())
        processes.from_first(folder.write_recipe, to_toml(config))
        show(Notice(f"pretraining: {config.stages[0].text} on {own.data.path}"))
        with part_of(folder):
            if (path / RECIPE).is_file():
                pretrain.resume(path, show)
            else:
                pretrain.pretrain(own, path, show)
    return followed(config, open_run(path))


def pretraining_config(config: Config) -> Config:
    """Return what `transferkit pretrain` would be told: the same network, and pictures alone."""
    data = config.data
    path = data.unlabeled
    if path is None and data.path is not None:
        inside = [data.path / name for name in TRAIN_FOLDERS]
        path = next((folder for folder in inside if folder.is_dir()), data.path)
    if path is None:
        what = f"--stages {config.stages[0].text}: there is no folder to pretrain on"
        raise usage_error(what, remedy="name one: --unlabeled FOLDER")
    own = replace(data, path=path, manifest=None, unlabeled=None, folds=None, corrections=None)
    return replace(config, data=replace(own, allow_outside=False, group_by=""), stages=())


def followed(config: Config, run: RunFolder) -> Config:
    """Return the configuration of the stages after pretraining, as `--from` would give it."""
    usual, learned = BackboneOptions(), config_of(run).backbone
    own = {
        name: value
        for name, value in asdict(learned).items()
        if name not in OF_THE_RUN_ALONE
        and value != getattr(usual, name)
        and getattr(config.backbone, name) == getattr(usual, name)
    }
    backbone = replace(config.backbone, **own, weights=run.weights_file(), pretrained=True)
    return replace(config.after_pretraining, backbone=backbone)


def with_pretraining(resolved: Config, given: Config) -> Config:
    """Return what a recipe says of a run: as it was resolved, but beginning with pretraining."""
    if not given.pretrains:
        return resolved
    source = {name: getattr(given.backbone, name) for name in ("weights", "pretrained")}
    backbone = replace(resolved.backbone, **source)
    return replace(resolved, backbone=backbone, stages=(given.stages[0], *resolved.stages))
