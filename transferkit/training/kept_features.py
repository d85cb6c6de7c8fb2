"""Features that a choice has read, kept in the cache folder for the run that follows."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from transferkit.closed_form.depths import num_columns
from transferkit.data.index import DatasetIndex
from transferkit.errors import UserError
from transferkit.files.atomic_write import make_inside, write_atomically
from transferkit.files.tensor_files import from_safetensors, to_safetensors
from transferkit.training.boundary_cache import cache_key
from transferkit.training.depth_features import DepthReader

FOLDER = "features"
MOST_BYTES = 512 * 2**20
"""The oldest files make room for others."""


def features_file(root: Path, reader: DepthReader, index: DatasetIndex) -> Path:
    """Return where features of a data set's pictures by a reader are kept."""
    seen = {
        "reader": reader.digest,
        "engine": reader.engine.name,
        "threads": torch.get_num_threads(),
    }
    key = cache_key({**seen, "data": index.picture_digest, "reading": index.reading})
    return root / FOLDER / f"{key}.safetensors"


def keep_rows(
    root: Path, reader: DepthReader, index: DatasetIndex, rows: Mapping[int, Tensor]
) -> None:
    """Write features, position in the index -> (D,); where that cannot be, nothing is kept."""
    file = features_file(root, reader, index)
    tensors = {"positions": torch.tensor(list(rows)), "rows": torch.stack(list(rows.values()))}
    data = to_safetensors(tensors)
    with contextlib.suppress(OSError, UserError):
        root.mkdir(parents=True, exist_ok=True)
        make_inside(root, file.parent)
        write_atomically(file, lambda opened: opened.write(data), lasting=False)
        files = sorted(file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        sizes = {path: path.stat().st_size for path in files}
        for path in files[:-1]:
            if sum(sizes.values()) > MOST_BYTES:
                path.unlink()
                del sizes[path]


def kept_rows(root: Path, reader: DepthReader, index: DatasetIndex) -> dict[int, Tensor]:
    """Return the features that are kept, position in the index -> (D,); none of a damaged file."""
    try:
        tensors = from_safetensors(features_file(root, reader, index))
        positions, rows = tensors["positions"], tensors["rows"]
    except (OSError, ValueError, KeyError, SafetensorError):
        return {}
    if rows.shape != (len(positions), num_columns(reader.depths)):
        return {}
    return dict(zip(positions.tolist(), rows, strict=True))
