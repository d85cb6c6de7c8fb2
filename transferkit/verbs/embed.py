"""The verb `embed`: pictures in, feature vectors out, of any run's backbone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferkit.data.addresses import fetch
from transferkit.errors import UserError, usage_error
from transferkit.events import Notice, Show, Working
from transferkit.files.row_files import SUFFIXES, ArrayFile, open_rows, require_replaceable
from transferkit.inference.members import Extractor
from transferkit.inference.outputs import Outputs, completed
from transferkit.inference.pipeline import BATCH, Picture, batches
from transferkit.inference.predict import is_pretraining, load_backbone, picture_engine
from transferkit.runs.folder import open_run
from transferkit.verbs.predict import list_pictures as list_pictures

ARRAY = ".safetensors"


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
    with Outputs(output).held():
        device, width = torch.device("cpu"), loaded.num_features
        running = picture_engine(loaded.classifier, loaded.maker, len(files), engine, device)
        extractor = Extractor(loaded.maker.with_limit(max_pixels), running)
        unreadable = write_features(extractor, files, output, width, show)
    if unreadable:
        text = f"{len(unreadable)} of {len(files)} pictures cannot be read: {unreadable[0].error}"
        show(Notice(text, warning=True))
    return Embedded(output, len(files), width, len(unreadable))


def write_features(
    extractor: Extractor, files: Sequence[Path], output: Path, width: int, show: Show
) -> list[Picture]:
    """Write the features (N, D) of pictures, D being the width; return the unreadable ones.

    Raises UserError when no picture can be read, and OSError.
    """
    names = [f"f{number}" for number in range(width)]

    def row(picture: Picture, vector: np.ndarray | None) -> dict[str, Any]:
        values = [None] * width if vector is None else vector.tolist()
        figures = dict(zip(names, values, strict=True))
        return {"path": str(picture.file), **figures, "error": picture.error}

    file: Any  # an array or a table
    if is_array := output.suffix.lower() == ARRAY:
        metadata = {"paths": json.dumps([str(file) for file in files])}
        file = ArrayFile(output, "features", (len(files), width), metadata)
    else:
        file = open_rows(output, ["path", *names, "error"], go_on=False)
    unreadable: list[Picture] = []
    with completed(file):
        for batch in batches([extractor], files, BATCH, show=show):
            vectors = batch.per_file(batch.features[0][:, 0].numpy() if batch.features else ())
            if is_array:
                for vector in vectors:
                    file.write(vector)
            else:
                file.write([row(*pair) for pair in zip(batch.pictures, vectors, strict=True)])
            unreadable += [picture for picture in batch.pictures if not picture.views]
        if len(unreadable) == len(files):
            reason = next((picture.error for picture in unreadable), "")
            raise UserError("no picture could be read", reason)
    return unreadable


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
