"""The files that a prediction writes: locked, and complete or marked as partial."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from transferkit import processes
from transferkit.files.atomic_write import disk_error
from transferkit.files.row_files import ArrayFile, RowFile, part_path
from transferkit.inference.pipeline import PictureBatch, Prediction
from transferkit.runs.lock import hold


@dataclass(frozen=True)
class Outputs:
    """The output files, beside the rows that are returned.

    rows: .csv, .jsonl or .parquet. skip_existing: continue `rows`. samples, features:
    .safetensors, one array in the order of the pictures. copy_to: folder for selected pictures.
    saliency: folder for overlays.
    """

    rows: Path | None = None
    skip_existing: bool = False
    samples: Path | None = None
    features: Path | None = None
    copy_to: Path | None = None
    saliency: Path | None = None

    def part(self, number: int, count: int) -> "Outputs":
        """Return where process `number` of `count` writes its share of the files."""
        files = (self.rows, self.samples, self.features)
        rows, samples, features = (path and part_path(path, number, count) for path in files)
        return replace(self, rows=rows, samples=samples, features=features)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the files. Raises UserError for disk errors."""
        files, folders = (self.rows, self.features, self.samples), (self.copy_to, self.saliency)
        try:
            with ExitStack() as stack:
                processes.from_first(hold, stack, *files)
                yield
        except OSError as error:
            place = next((path for path in (*files, *folders) if path is not None), Path())
            raise disk_error(place.parent, error) from error


@contextmanager
def completed(*files: RowFile | ArrayFile) -> Iterator[None]:
    """Close files at the end: complete, or as partial after an error."""
    whole = False
    try:
        yield
        whole = True
    finally:
        for file in files:
            file.close(whole)


def write_arrays(
    arrays: dict[str, ArrayFile], batch: PictureBatch, prediction: Prediction | None
) -> None:
    """Write samples and features of a batch, a row for every file."""
    for name, array in arrays.items():
        values: Iterable[np.ndarray] = ()
        if prediction is not None:
            samples = name == "samples"
            values = prediction.probabilities if samples else prediction.features.numpy()
        for row in batch.per_file(values):
            array.write(row)
