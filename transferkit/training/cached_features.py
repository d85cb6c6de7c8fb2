"""Features of pictures without decoding them again: from what the stages of a run have cached."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

from transferkit import processes
from transferkit.backbones.engine import choose_engine, make_engine
from transferkit.data.loader import CLEAN
from transferkit.training.boundary_cache import CacheParts, part_name
from transferkit.training.cache_choice import boundaries_of
from transferkit.training.cache_filling import DERIVATION_ROWS, key_of, part_of
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage


def cached_features(
    parts: Parts, stages: Sequence[PlannedStage], base: int | None, positions: np.ndarray
) -> Tensor | None:
    """Return features (M, D) of the clean views of pictures at these positions of the index.

    Training and validation pictures of the run, M >= 1. They are computed from the highest boundary
    whose cache is complete and was filled by the weights as they are now; None where there is none.
    base: boundary of the lowest cache, None without caches.
    """
    rows, chain = clean_rows(parts, positions), parts.chain
    top = len(chain.groups)
    for boundary in reversed(boundaries_of(parts, stages)):
        if base is None or boundary < base:
            continue
        with complete_cache(parts, base, boundary) as cache:
            if cache is None:
                continue
            batches = (rows[i : i + DERIVATION_ROWS] for i in range(0, len(rows), DERIVATION_ROWS))
            if boundary == top:
                return torch.cat([cache.read(batch) for batch in batches])
            section = chain.section(boundary, top).eval()
            name = choose_engine(parts.settings.engine, parts.device, len(rows))
            engine = make_engine(section, cache.read(rows[[0, -1]]), name, parts.device)
            return torch.cat([engine.run(cache.read(batch)) for batch in batches])
    return None


def clean_rows(parts: Parts, positions: np.ndarray) -> np.ndarray:
    """Return the rows (M,) of a cache that hold the clean views of pictures (M,)."""
    material = parts.material
    order = material.rows(processes.count())
    place = {int(p): i for i, p in enumerate([*material.train, *material.val])}
    pictures = np.array([place[int(position)] for position in positions])
    return order.rows_of(pictures, np.full(len(pictures), CLEAN))


@contextmanager
def complete_cache(parts: Parts, base: int, boundary: int) -> Iterator[CacheParts | None]:
    """Open the cache of a boundary that belongs to the weights as they are, all its parts.

    None where a part is missing; nothing is made then. The run's own handles must be closed.
    """
    key, count = key_of(parts, base, boundary), processes.count()
    folders = [parts.settings.root / part_name(key, part, count) for part in range(count)]
    with ExitStack() as stack:
        caches = []
        if all((folder / "state.json").exists() for folder in folders):
            caches = [stack.enter_context(part_of(parts, boundary, key, p)) for p in range(count)]
        starts = parts.material.rows(count).starts()
        yield CacheParts(caches, starts) if caches and all(c.complete for c in caches) else None
