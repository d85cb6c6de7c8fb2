"""The verb `embed`: pictures in, feature vectors out, of any run's backbone."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from transferkit.data.addresses import fetch
from transferkit.errors import UserError, usage_error
from transferkit.events import Event, Notice, Progress, Working
from transferkit.files.atomic_write import disk_error
from transferkit.files.row_files import SUFFIXES, ArrayFile, open_rows, require_replaceable
from transferkit.inference.predict import (
    LoadedRun,
    features_of,
    is_pretraining,
    load_backbone,
    picture_engine,
)
from transferkit.runs.folder import open_run
from transferkit.runs.lock import only_process
from transferkit.verbs.predict import list_pictures as list_pictures

Show = Callable[[Event], None]
ARRAY = ".safetensors"
ROWS = 64


@dataclass(frozen=True)
class Embedded:
    """What was written. width: D. unreadable: pictures without features."""

    output: Path
    pictures: int
    width: int
    unreadable: int

    def line(self) -> str:
        """Return what to print."""
        return f"{self.pictures:,} × {self.width} features written to {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "output": str(self.output)}


def embed(
    run: Path,
    files: Sequence[Path],
    output: Path,
    engine: str,
    show: Show,
    max_pixels: int | None = None,
) -> Embedded:
    """Write the features (N, D) of pictures, in their order.

    output: .safetensors holds the array `features`, with the paths as a JSON list in its metadata
    and NaN for a picture that cannot be read; .csv, .jsonl and .parquet hold a row per picture:
    path, f0 to f<D-1>, error. max_pixels: in place of the run's own.
    Raises UserError when no picture can be read.
    """
    suffixes = (ARRAY, *SUFFIXES)
    if output.suffix.lower() not in suffixes:
        raise usage_error(f"--output {output}: the name must end in one of {', '.join(suffixes)}")
    require_replaceable([output])
    show(Working("loading the model"))
    loaded = load_backbone(open_run(run))
    loaded = replace(loaded, maker=loaded.maker.with_limit(max_pixels))
    try:
        with only_process(output):
            return write_features(loaded, files, output, engine, show)
    except OSError as error:
        raise disk_error(output.parent, error) from error


def write_features(
    loaded: LoadedRun, files: Sequence[Path], output: Path, engine: str, show: Show
) -> Embedded:
    """Write the features of pictures, see `embed`. Raises OSError."""
    device = torch.device("cpu")
    running = picture_engine(loaded.classifier, loaded.maker, len(files), engine, device)
    names = [f"f{number}" for number in range(loaded.num_features)]
    if output.suffix.lower() == ARRAY:
        metadata = {"paths": json.dumps([str(file) for file in files])}
        shape = (len(files), loaded.num_features)
        array: ArrayFile | None = ArrayFile(output, "features", shape, metadata)
        table = None
    else:
        array, table = None, open_rows(output, ["path", *names, "error"], go_on=False)
    whole, done, bad, reason = False, 0, 0, ""
    try:
        for file, features, problem in features_of(running, loaded.maker, files):
            done += 1
            bad += features is None
            reason = reason or problem
            if array is not None:
                array.write(None if features is None else features.numpy())
            if table is not None:
                values = [None] * len(names) if features is None else features.tolist()
                found = dict(zip(names, values, strict=True))
                table.write([{"path": str(file), **found, "error": problem}])
            if done % ROWS == 0 or done == len(files):
                show(Progress("pictures", done, len(files)))
        if bad == done:
            raise UserError("no picture could be read", reason)
        whole = True
    finally:
        for part in (array, table):
            if part is not None:
                part.close(whole)
    if bad:
        show(Notice(f"{bad} of {done} pictures cannot be read: {reason}", warning=True))
    return Embedded(output, done, loaded.num_features, bad)


def embed_instead(run: str, sources: Sequence[str], output: Path | None, show: Show) -> str:
    """Write features where a pretraining run was given to `predict --save-features`.

    Returns what to print; "" where that is not so, and nothing was done.
    """
    path = Path(run)
    if output is None or not path.is_dir():
        return ""
    folder = open_run(path)
    if not folder.has_model or not is_pretraining(folder.load_model()[0]):
        return ""
    fetch(sources, show)
    return embed(path, list_pictures(sources, ()), output, "auto", show).line()
