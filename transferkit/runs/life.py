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
from transferkit.data.shards import is_shards
from transferkit.errors import UserError, usage_error
from transferkit.runs.creation import begin_run
from transferkit.runs.folder import RunFolder, open_run
from transferkit.runs.lock import hold
from transferkit.stopping import Stopped, last_words

INTERRUPTED = 130


@contextmanager
def new_run(out: Path | None, name: str) -> Iterator[RunFolder]:
    """Make and hold a run folder; nothing is left of a run that fails before it can be resumed.

    The first process makes it; the others only know of it. See `begin_run`.
    """
    with ExitStack() as held:
        folder = processes.from_first(begin_run, held, out, name)
        try:
            yield folder
        except BaseException as error:
            resumable = isinstance(error, UserError) and error.exit_code == INTERRUPTED
            if processes.is_first() and not resumable:
                folder.discard_unstarted()
            raise


@contextmanager
def earlier_run(path: Path) -> Iterator[RunFolder]:
    """Open and hold the folder of an earlier run. Raises UserError."""
    folder = open_run(path)
    with ExitStack() as held:
        processes.from_first(hold, held, path)
        yield folder


@contextmanager
def working_on(folder: RunFolder, command: str) -> Iterator[None]:
    """Turn an interrupt of a run into a UserError that says how to resume it.

    command: of transferkit, which made the run.
    """
    where = f"the run is in {folder.path}"
    remedy = f"continue it with: transferkit {command} --resume {folder.path}"
    try:
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


def require_same_pictures(
    before: Mapping[str, Any], index: DatasetIndex, path: Path, command: str
) -> None:
    """Raise UserError when the pictures are no longer those that a run started with.

    before: data.json of the run at `path`. command: of transferkit, which made the run.
    """
    before = before if isinstance(before, Mapping) else {}
    same = before.get("fingerprint") == index.fingerprint
    if not same and before.get("contents") != index.contents:
        number = before.get("pictures", "unknown")
        raise UserError(
            f"cannot resume {path}: the pictures have changed since it started",
            f"{number} pictures then, {len(index.paths)} now, or other contents",
            f"name where they lie now: transferkit {command} DATA --resume {path}\n"
            f"or start again: transferkit {command} --recipe {path}",
        )


def moved(
    config: Config,
    data: Path | None,
    manifest: Path | None,
    run: Path,
    corrections: Path | None = None,
) -> Config:
    """Return a run's configuration with the place where its pictures lie now.

    data, manifest, corrections: as named now. What is not, and is gone where the run names it, is
    taken from the same place beside the run or the current folder; whoever reads it compares the
    contents.
    """
    aux, known = config.pretraining.aux, config.data.corrections
    right = corrections or (known and (found_near(known, run) or known))
    given = replace(config.data, corrections=right and right.absolute())
    table = given.manifest
    if aux is not None:  # the one place of a run that learns from labels of another task
        there = (data or beside(aux, run)).absolute()
        return replace(config, pretraining=replace(config.pretraining, aux=there))
    if data is None and manifest is None:
        path, table = given.path and beside(given.path, run), table and beside(table, run)
        return replace(config, data=replace(given, path=path, manifest=table))
    if table is not None and manifest is None and data is not None:
        inside = data / table.name
        manifest = inside if inside.is_file() else table
        data = None if inside.is_file() and given.path is None else data
    return absolute_paths(replace(config, data=replace(given, path=data, manifest=manifest)))


def beside(path: Path, run: Path) -> Path:
    """Return a path, or where it is gone, what is called the same near a run or from here.

    Raises UserError where there is nothing.
    """
    moved_to = found_near(path, run)
    if moved_to is None:
        what = f"the pictures of {run} are gone: {path} does not exist"
        raise UserError(what, "", f"name where they lie now, as in DATA --resume {run}")
    return moved_to


def found_near(path: Path, run: Path) -> Path | None:
    """Return a path, or what is called the same near a run or from here, or None."""
    if is_shards(path) or os.path.lexists(path):
        return path
    ends = [Path(*path.parts[i:]) for i in range(1, len(path.parts))]
    near = (*run.absolute().parents, Path.cwd())
    return next((top / end for end in ends for top in near if (top / end).exists()), None)


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

    def absolute(part: Any, *names: str) -> Any:
        paths = {name: getattr(part, name) for name in names}
        plain = {n: p for n, p in paths.items() if p is not None and address_of(p) is None}
        return replace(part, **{n: path.expanduser().absolute() for n, path in plain.items()})

    return replace(
        config,
        data=absolute(config.data, "path", "manifest", "corrections", "unlabeled"),
        backbone=absolute(config.backbone, "weights"),
        cache=absolute(config.cache, "dir"),
        solve=replace(
            config.solve, extends=tuple(path.absolute() for path in config.solve.extends)
        ),
        pretraining=absolute(config.pretraining, "probe", "aux"),
    )
