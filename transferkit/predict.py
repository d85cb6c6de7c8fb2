"""The verb `predict`: pictures in, rows out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from transferkit.atomic_write import disk_error, write_atomically
from transferkit.csv_rows import to_csv
from transferkit.data.index import list_images
from transferkit.errors import usage_error
from transferkit.inference.calibration import softmax
from transferkit.inference.exported import is_exported, open_exported
from transferkit.inference.predict import (
    features_of,
    head_logits,
    load_run,
    picture_engine,
    prediction_row,
)
from transferkit.run_folder import open_run
from transferkit.strict_json import strict_json
from transferkit.training.events import Event, Progress


def predict(
    run: Path,
    sources: Sequence[Path | str],
    top_k: int,
    engine: str,
    show: Callable[[Event], None],
) -> Iterator[dict[str, Any]]:
    """Yield one row per picture, in order; an unreadable one has its reason in `error`.

    sources: files, folders, glob patterns. top_k: how many classes a row names, at least 1.
    """
    if is_exported(run):
        if engine != "auto":
            raise usage_error("--engine has no effect on an exported model", "", "leave it out")
        yield from predict_exported(run, sources, top_k, show)
        return
    loaded = load_run(open_run(run))
    files = list_images(sources)
    device = torch.device("cpu")
    runner = picture_engine(loaded.classifier, loaded.maker, len(files), engine, device)
    found = features_of(runner, loaded.maker, files)
    for done, (file, features, reason) in enumerate(found, start=1):
        probabilities = None
        if features is not None:
            logits = head_logits(loaded.classifier, features[None])
            probabilities = softmax(logits[0].numpy(), loaded.temperature)
        yield prediction_row(str(file), probabilities, loaded.classes, top_k, reason)
        show(Progress("pictures", done, len(files)))


def predict_exported(
    path: Path, sources: Sequence[Path | str], top_k: int, show: Callable[[Event], None]
) -> Iterator[dict[str, Any]]:
    """Yield one row per picture, as `predict` does, from a file that `export` wrote."""
    opened = open_exported(path)
    files = list_images(sources)
    found = features_of(opened.engine, opened.maker, files)  # of this engine they are logits
    for done, (file, logits, reason) in enumerate(found, start=1):
        probabilities = None if logits is None else softmax(logits.numpy(), opened.temperature)
        yield prediction_row(str(file), probabilities, opened.classes, top_k, reason)
        show(Progress("pictures", done, len(files)))


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(strict_json(row) + "\n" for row in rows)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write prediction rows as CSV or JSON lines, by the file's suffix, replacing it at once."""
    text = jsonl(rows) if path.suffix.lower() == ".jsonl" else to_csv(rows)
    try:
        write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
    except OSError as error:
        raise disk_error(path.parent, error) from error
