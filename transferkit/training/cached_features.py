"""Features of pictures without decoding them again: from what the stages of a run have cached."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

from transferkit.backbones.engine import choose_engine, make_engine
from transferkit.data.loader import CLEAN
from transferkit.training.boundary_cache import CacheParts, part_name
from transferkit.training.sources import DERIVATION_ROWS, Sources
from transferkit.training.stages import StagePlan


def cached_features(sources: Sources, plan: StagePlan, positions: np.ndarray) -> Tensor | None:
    """Return features (M, D) of the clean views of pictures at these positions of the index.

    Training and validation pictures of the run, M >= 1. They are computed from the highest boundary
    whose cache is complete and was filled by the weights as they are now; None where there is none.
    """
    rows = clean_rows(sources, positions)
    top = len(sources.chain.groups)
    for boundary in sorted({s.boundary for s in plan.stages if sources.is_cached(s)}, reverse=True):
        with complete_cache(sources, boundary) as cache:
            if cache is None:
                continue
            batches = (rows[i : i + DERIVATION_ROWS] for i in range(0, len(rows), DERIVATION_ROWS))
            if boundary == top:
                return torch.cat([cache.read(batch) for batch in batches])
            section = sources.chain.section(boundary, top).eval()
            name = choose_engine(sources.settings.engine, sources.device, len(rows))
            engine = make_engine(section, cache.read(rows[[0, -1]]), name, sources.device)
            return torch.cat([engine.run(cache.read(batch)) for batch in batches])
    return None


def clean_rows(sources: Sources, positions: np.ndarray) -> np.ndarray:
    """Return the rows (M,) of a cache that hold the clean views of pictures (M,)."""
    material = sources.material
    order = material.rows(sources.num_parts)
    place = {int(p): i for i, p in enumerate([*material.train, *material.val])}
    pictures = np.array([place[int(position)] for position in positions])
    return order.rows_of(pictures, np.full(len(pictures), CLEAN))


@contextmanager
def complete_cache(sources: Sources, boundary: int) -> Iterator[CacheParts | None]:
    """Open the cache of a boundary that belongs to the weights as they are, all its parts.

    None where a part is missing; nothing is made then. The sources must be closed.
    """
    key, count = sources.key(boundary), sources.num_parts
    folders = [sources.settings.root / part_name(key, part, count) for part in range(count)]
    with ExitStack() as stack:
        parts = []
        if all((folder / "state.json").exists() for folder in folders):
            parts = [stack.enter_context(sources.part(boundary, key, p)) for p in range(count)]
        starts = sources.material.rows(count).starts()
        yield CacheParts(parts, starts) if parts and all(p.complete for p in parts) else None
