"""Where a new run goes: a folder of its own, which holds nothing else."""

import contextlib
import errno
import re
from contextlib import ExitStack
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from transferkit.errors import UserError, usage_error
from transferkit.files.atomic_write import disk_error, write_atomically
from transferkit.runs.folder import BEGINNINGS, LOG, RECIPE, RunFolder
from transferkit.runs.lock import BusyError, hold

RUNS = Path("runs")
TRIED = "write_test"
DESCRIPTIONS = {"data.json": "fingerprint", "budget.json": "costs"}
"""What is written before the recipe -> a key that shows that a run wrote it."""


def begin_run(held: ExitStack, out: Path | None, name: str) -> RunFolder:
    """Make the folder of a new run and hold it until the stack is left.

    out: None makes one below runs/ with the time and `name`. Raises as `create_run`.
    """
    path = out or default_run_path(RUNS, name, datetime.now())
    try:
        return create_run(path, held)
    except BusyError:
        if out is not None:
            raise
        return begin_run(held, out, name)  # another run began within this second


def create_run(path: Path, held: ExitStack | None = None) -> RunFolder:
    """Make the folder of a new run, with its parents, and hold it until the stack is left.

    Without a stack it is let go at once. It is held before anything in it is looked at.
    Raises UserError: exit code 2 when `path` is a file or a folder with something in it, 1 when
    it cannot be made or written to (tried with a real file) or when another process has it.
    """
    if held is None:
        with ExitStack() as held:
            return create_run(path, held)
    missing: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise usage_error(f"{path} is a file, not a folder", remedy="choose another --out")
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        hold(held, path)
        _clear(path)
        write_atomically(path / TRIED, lambda file: file.write(b"\0"))
        (path / TRIED).unlink()
    except OSError as error:
        for folder in missing:
            with contextlib.suppress(OSError):  # missing, or something lies in it
                folder.rmdir()
        if error.errno == errno.ENAMETOOLONG:
            raise disk_error(path, error) from None
        what = f"cannot make the run folder {path}: {error.strerror or error}"
        raise UserError(what, remedy="choose another place with --out") from error
    return RunFolder(path, tuple(reversed(missing)))


def default_run_path(parent: Path, data_name: str, now: datetime) -> Path:
    """Return a path that does not exist yet, e.g. runs/2026-11-23T14-02-11-flowers."""
    label = re.sub(r"[^\w.-]+", "-", data_name).strip("-.")[:60] or "data"
    first = parent / f"{now:%Y-%m-%dT%H-%M-%S}-{label}"
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(path for path in chain([first], others) if not path.exists())


def _clear(path: Path) -> None:
    """Remove what a run left that ended before it began.

    It could not clean up on a disk that had just turned read-only, or was killed. Without a recipe,
    which is written last, nothing can be taken up from it.
    """
    names = {file.name for file in path.iterdir()}
    temporary = {f".{name}.tmp" for name in (*BEGINNINGS, TRIED)}
    described = names & set(DESCRIPTIONS)
    if not names <= {*DESCRIPTIONS, TRIED, *temporary, *([LOG] if described else [])}:
        raise _occupied(path)
    for name in described:
        try:
            contents = RunFolder(path).read_json(name)
        except UserError:
            contents = None
        if not isinstance(contents, dict) or DESCRIPTIONS[name] not in contents:
            raise _occupied(path)  # a file of somebody else with that name
    for name in names:
        (path / name).unlink()


def _occupied(path: Path) -> UserError:
    if (path / RECIPE).exists():
        remedy = f"continue it with --resume {path}, or choose another --out"
        return usage_error(f"{path} already holds a run", remedy=remedy)
    return usage_error(f"{path} is not empty", remedy="choose another --out, or an empty folder")
