"""How every kind of run begins, is interrupted and is taken up again."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferkit import processes
from transferkit.config import Config
from transferkit.data.addresses import address_of
from transferkit.data.index import DatasetIndex
from transferkit.errors import UserError, usage_error
from transferkit.runs.creation import create_run
from transferkit.runs.folder import RunFolder
from transferkit.runs.lock import only_process
from transferkit.stopping import Stopped, last_words

INTERRUPTED = 130


@contextmanager
def new_run(path: Path) -> Iterator[RunFolder]:
    """Make a run folder; leave nothing behind of a run that fails before it can be resumed.

    The first process makes it; the others only know of it.
    """
    folder = processes.from_first(create_run, path)
    try:
        yield folder
    except BaseException as error:
        kept = isinstance(error, UserError) and error.exit_code == INTERRUPTED
        if processes.is_first() and not kept:
            folder.discard_unstarted()
        raise


@contextmanager
def working_on(folder: RunFolder, command: str) -> Iterator[None]:
    """Hold the folder while a run works in it; an interrupt becomes advice on how to go on.

    command: of transferkit, which made the run. Raises UserError.
    """
    where = f"the run is in {folder.path}"
    remedy = f"continue it with: transferkit {command} --resume {folder.path}"
    try:
        with ExitStack() as held:
            processes.from_first(hold, held, folder)
            yield
    except processes.LostProcess as error:
        last_words()
        what = f"{error.what}; every finished epoch is saved"
        raise processes.LostProcess(what, where, remedy) from None
    except KeyboardInterrupt as interrupt:
        if processes.place().count > 1 and processes.is_first():  # it speaks for all of them
            last_words()
        unit = "step" if isinstance(interrupt, Stopped) else "epoch"
        what = f"interrupted; every finished {unit} is saved"
        raise UserError(what, where, remedy, exit_code=INTERRUPTED) from None


def hold(held: ExitStack, folder: RunFolder) -> None:
    """Keep other jobs out of a run's folder until the stack is left."""
    held.enter_context(only_process(folder.path))


def require_same_pictures(
    known: Mapping[str, Any], index: DatasetIndex, path: Path, command: str
) -> None:
    """Raise UserError when the pictures are no longer those that a run started with.

    known: data.json of the run at `path`. command: of transferkit, which made the run.
    """
    if not isinstance(known, Mapping) or known.get("fingerprint") != index.fingerprint:
        before = known.get("pictures", "unknown") if isinstance(known, Mapping) else "unknown"
        raise UserError(
            f"cannot resume {path}: the pictures have changed since it started",
            f"{before} pictures then, {len(index.paths)} now, or other contents",
            f"put them back, or start again: transferkit {command} --recipe {path}",
        )


def refuse_among_pictures(run: Path, config: Config) -> None:
    """Raise a usage error when a run folder would be taken for a class of its own data set."""
    data = config.data.path
    if data is None or config.data.manifest is not None or not os.path.isdir(data):
        return  # braces of shards may be longer than a name can be: no OSError here
    if run.resolve().is_relative_to(data.resolve()):
        raise usage_error(
            f"the run folder {run} would lie among the pictures",
            f"they are read from {data}, with every folder in it",
            "choose a place outside of it with --out",
        )


def absolute_paths(config: Config) -> Config:
    """Make the configuration's paths absolute, so that the written recipe works from anywhere."""
    data, backbone, cache = config.data, config.backbone, config.cache
    own = config.pretraining

    def whole(path: Path | None) -> Path | None:
        if path is None or address_of(path) is not None:
            return path
        return path.expanduser().absolute()

    return replace(
        config,
        data=replace(data, path=whole(data.path), manifest=whole(data.manifest)),
        backbone=replace(backbone, weights=whole(backbone.weights)),
        cache=replace(cache, dir=whole(cache.dir)),
        pretraining=replace(own, probe=whole(own.probe), aux=whole(own.aux)),
    )
