"""The verb `predict` on a file that `export` wrote: plain predictions, without a run folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferkit.config import Predict
from transferkit.errors import usage_error
from transferkit.events import Event, Progress
from transferkit.files.atomic_write import disk_error
from transferkit.files.row_files import made_by, not_in, open_rows
from transferkit.inference.calibration import softmax
from transferkit.inference.decide import Rules
from transferkit.inference.exported import is_exported, open_exported, require_trust
from transferkit.inference.members import Batch
from transferkit.inference.predict import features_of
from transferkit.inference.rows import batch_rows, columns, error_row
from transferkit.inference.uncertainty import measure
from transferkit.recipes.reading import load_config
from transferkit.runs.lock import hold
from transferkit.verbs.predict import Outputs, check_outputs, list_pictures

KEYS = ("predict.top_k", "predict.batch_size")
"""What an exported model knows of the options; the others need a run folder."""

__all__ = ["exported_options", "is_exported", "predict_exported", "require_trust"]


def exported_options(sets: Iterable[str], flags: Mapping[str, Any], outputs: Outputs) -> Predict:
    """Return the options for an exported model. Raises a usage error for those that need a run."""
    keys = [*flags, *(pair.partition("=")[0].strip() for pair in sets)]
    keys += ["--save-samples"] if outputs.samples else []
    keys += ["--save-features"] if outputs.features else []
    keys += ["--saliency"] if outputs.saliency else []
    if others := [key for key in keys if key not in KEYS]:
        raise usage_error(
            f"{', '.join(others)}: has no effect on an exported model",
            "the file holds the network alone, not the run's calibration",
            "predict with the run folder instead",
        )
    options = load_config(None, tuple(sets), flags).predict
    check_outputs(outputs, options, 1)
    return options


def predict_exported(
    path: Path,
    sources: tuple[Sequence[str], Iterable[str]],
    options: Predict,
    outputs: Outputs,
    show: Callable[[Event], None],
    trusted: bool = False,
    max_pixels: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one row per picture, in order; every batch is on disk before the next one begins.

    sources: files, folders, patterns, and the lines that "-" stands for. trusted: see
    `require_trust`. max_pixels: in place of the model's own.
    """
    opened = open_exported(path, trusted)
    files = list_pictures(*sources)
    names = columns(options, len(opened.classes), 1, unlike=False)
    whole, table, left = False, None, files
    try:
        with ExitStack() as stack:
            hold(stack, outputs.rows)
            if outputs.rows is not None:
                parts = [p for p in (path, path.with_suffix(".bin")) if p.is_file()]  # OpenVINO's
                made = made_by([parts], {"top_k": options.top_k}, files)
                table = open_rows(outputs.rows, names, outputs.skip_existing, made)
                left = not_in(table.done, files)
                stack.callback(lambda: table.close(whole))
            maker = opened.maker.with_limit(max_pixels)
            found = features_of(opened.engine, maker, left)  # of this engine: logits
            done = 0
            while part := list(islice(found, options.batch_size)):
                readable = [(str(file), logits) for file, logits, _ in part if logits is not None]
                new = iter(_rows(readable, opened.temperature, options, opened.classes))
                rows = [
                    error_row(str(file), reason, names) if logits is None else next(new)
                    for file, logits, reason in part
                ]
                if table:
                    table.write(rows)
                yield from rows
                done += len(part)
                show(Progress("pictures", done, len(left)))
            whole = True
    except OSError as error:
        raise disk_error((outputs.rows or Path()).parent, error) from error


def _rows(
    readable: Sequence[tuple[str, torch.Tensor]],
    temperature: float,
    options: Predict,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    if not readable:
        return []
    logits = torch.stack([logits for _, logits in readable])  # (N, K)
    probabilities = np.asarray(softmax(logits.numpy(), temperature))[:, None]  # (N, 1, K)
    batch = Batch(probabilities, logits, None, ())
    paths = [path for path, _ in readable]
    return batch_rows(paths, batch, measure(probabilities), Rules(), options, classes)
