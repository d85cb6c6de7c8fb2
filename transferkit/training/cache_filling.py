"""What fills the boundary caches of a run: pictures through the trunk, and rows through blocks.

The lowest cache is filled from the pictures, those above it from its rows. A cache depends on the
weights below its boundary as they are when it is opened: blocks that a stage has changed since then
get a new one.
"""

from collections.abc import Generator
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from transferkit import processes
from transferkit.backbones.engine import Engine, choose_engine, make_engine
from transferkit.backbones.head import FrozenTrunk
from transferkit.data.loader import ahead
from transferkit.events import Event, Notice, Progress
from transferkit.training.boundary_cache import (
    BoundaryCache,
    CacheParts,
    cache_key,
    part_name,
    weights_digest,
)
from transferkit.training.material import Views, gathered, grouped
from transferkit.training.parts import Parts

EXTRACTION_ROWS = 64
"""Views per run of the trunk; a fixed number, so that an interrupted fill repeats the same bits."""
DERIVATION_ROWS = 256
COMPUTED_WITH = ("transferkit", "torch", "timm", "pillow", "onnxruntime")
"""Another version of one of these may give other numbers: its caches are not taken over."""


def row_shape(parts: Parts, boundary: int) -> tuple[int, ...]:
    """Return the shape of one picture's activation at a boundary, without the batch axis."""
    size = parts.material.maker.preprocessing
    images = torch.zeros(2, 3, size.height_px, size.width_px, device=parts.device)
    with torch.inference_mode():
        return tuple(parts.chain.trunk(boundary)(images).shape[1:])


def fill(
    parts: Parts, base: int, boundary: int, clean_only: bool = False
) -> Generator[Event, None, BoundaryCache]:
    """Return this process's part of the cache at a boundary, with the rows that were asked for.

    base: boundary of the lowest cache. clean_only: the clean views, and not yet the varied ones.
    """
    cache = yield from _extract(parts, base, clean_only)
    if cache.complete:
        parts.handles.engines.clear()  # it holds memory
    if boundary > base:
        cache = yield from _derive(parts, base, boundary, clean_only)
    return cache


def key_of(parts: Parts, base: int, boundary: int) -> str:
    """Return the key of the cache at a boundary for the weights as they are."""
    key = _base_key(parts, base)
    return key if boundary == base else _derived_key(parts, key, base, boundary)


def cache_names(parts: Parts, base: int, above: list[int]) -> frozenset[str]:
    """Return the folders of the caches that a run needs if its weights stay as they are."""
    first, count = _base_key(parts, base), processes.count()
    keys = [first, *(_derived_key(parts, first, base, boundary) for boundary in above)]
    return frozenset(part_name(key, part, count) for key in keys for part in range(count))


def part_of(parts: Parts, boundary: int, key: str, part: int) -> BoundaryCache:
    """Open what process `part` computes of the cache under a key."""
    count = processes.count()
    starts = parts.material.rows(count).starts()
    folder = parts.settings.root / part_name(key, part, count)
    rows = starts[part + 1] - starts[part]
    return BoundaryCache(folder, rows, row_shape(parts, boundary), parts.settings.dtype)


def whole(parts: Parts, boundary: int, own: BoundaryCache) -> BoundaryCache | CacheParts:
    """Return the cache at a boundary with the parts of all processes, once they are there."""
    count, handles = processes.count(), parts.handles
    if count == 1:
        return own
    processes.from_all(None)
    for cache in handles.others:
        cache.close()
    key, _ = handles.caches[boundary]
    others = {part: part_of(parts, boundary, key, part) for part in range(count)}
    others.pop(processes.rank()).close()
    handles.others = list(others.values())
    every = [others.get(part, own) for part in range(count)]
    return CacheParts(every, parts.material.rows(count).starts())


def _base_key(parts: Parts, boundary: int) -> str:
    trunk = FrozenTrunk(parts.classifier, parts.chain.trunk(boundary))
    material, settings = parts.material, parts.settings
    return cache_key(
        {
            "architecture": parts.architecture,
            "data": material.index.fingerprint,
            "maker": asdict(material.maker),
            "num_views": material.num_views,
            "weights": weights_digest(trunk.state_dict()),
            "boundary": [group.name for group in parts.chain.groups[:boundary]],
            "dtype": settings.dtype,
            "engine": choose_engine(settings.engine, parts.device, material.num_rows),
            "batch": EXTRACTION_ROWS,
            "versions": {name: version(name) for name in COMPUTED_WITH},
        }
    )


def _derived_key(parts: Parts, base_key: str, base: int, boundary: int) -> str:
    return cache_key(
        {
            "source": base_key,
            "weights": weights_digest(parts.chain.section(base, boundary).state_dict()),
            "boundary": boundary,
            "engine": _section_engine(parts),
        }
    )


def _section_engine(parts: Parts) -> str:
    """Choose by an eighth of the rows: the blocks between two boundaries are soon through."""
    return choose_engine(parts.settings.engine, parts.device, parts.material.num_rows // 8)


def _extract(
    parts: Parts, boundary: int, clean_only: bool
) -> Generator[Event, None, BoundaryCache]:
    cache = _reopen(parts, boundary, _base_key(parts, boundary))
    if cache.complete:
        return cache
    lists = parts.material.view_lists(processes.count(), processes.rank())
    groups = grouped(lists, EXTRACTION_ROWS, _num_clean(parts))
    sizes = [sum(len(numbers) for _, numbers in group) for group in groups]
    first, end = _missing(parts, cache, np.cumsum([0, *sizes]).tolist(), clean_only)
    if first == end:
        return cache
    engine = yield from _trunk_engine(parts, boundary, lists[-1])
    views = ahead(parts.material.make, (item for group in groups[first:end] for item in group))
    for group in groups[first:end]:
        _append(parts, cache, engine, gathered(parts.watch, views, len(group)))
        yield Progress("frozen trunk", cache.rows_done, cache.num_rows)
    return cache


def _derive(
    parts: Parts, base: int, boundary: int, clean_only: bool
) -> Generator[Event, None, BoundaryCache]:
    key, source = parts.handles.caches[base]
    cache = _reopen(parts, boundary, _derived_key(parts, key, base, boundary))
    clean, count = _num_clean(parts), cache.num_rows
    starts = [*range(0, clean, DERIVATION_ROWS), *range(clean, count, DERIVATION_ROWS)]
    first, end = _missing(parts, cache, [*starts, count], clean_only)
    if first == end:
        return cache
    with parts.watch.on("prepare engine"):
        section = parts.chain.section(base, boundary)
        example = source.read(np.array([0, clean - 1]))
        engine = make_engine(section, example, _section_engine(parts), parts.device)
    if engine.notice:
        yield Notice(engine.notice, warning=True)
    for start, stop in pairwise([*starts, count][first : end + 1]):
        _append(parts, cache, engine, read_rows(parts, source, np.arange(start, stop)))
        yield Progress("blocks above the trunk", cache.rows_done, cache.num_rows)
    return cache


def _num_clean(parts: Parts) -> int:
    return parts.material.rows(processes.count()).num_clean(processes.rank())


def _missing(
    parts: Parts, cache: BoundaryCache, edges: list[int], clean_only: bool
) -> tuple[int, int]:
    """Return the first batch that a cache lacks, and the one at which to end.

    edges: (B + 1,) the first row of every batch, then the number of rows.
    """
    first = cache.forget_after(edges[:-1])
    end = edges.index(_num_clean(parts)) if clean_only else len(edges) - 1
    return min(first, end), end


def _trunk_engine(parts: Parts, boundary: int, example: Views) -> Generator[Event, None, Engine]:
    """Make what runs the trunk, once for a boundary and its weights."""
    handles, material = parts.handles, parts.material
    key, _ = handles.caches[boundary]
    if key in handles.engines:
        return handles.engines[key]
    trunk = FrozenTrunk(parts.classifier, parts.chain.trunk(boundary)).eval()
    name = choose_engine(parts.settings.engine, parts.device, material.num_rows)
    size = material.maker.preprocessing
    with parts.watch.on("prepare engine"):
        views = torch.from_numpy(material.make(example)[:1])
        images = views.expand(2, 3, size.height_px, size.width_px).contiguous()
        engine = make_engine(trunk, images, name, parts.device)
    if engine.notice:
        yield Notice(engine.notice, warning=True)
    handles.engines = {key: engine}
    return engine


def _append(parts: Parts, cache: BoundaryCache, engine: Engine, inputs: Tensor) -> None:
    """Write the engine's outputs for the inputs (n, ...) as the cache's next rows."""
    with parts.watch.on("trunk"):
        rows = engine.run(inputs)
    with parts.watch.on("cache write"):
        cache.append(rows)


def _reopen(parts: Parts, boundary: int, key: str) -> BoundaryCache:
    """Open the cache at a boundary under its key, closing one with another key."""
    caches = parts.handles.caches
    if boundary in caches:
        open_key, cache = caches[boundary]
        if open_key == key:
            return cache
        cache.close()
    cache = part_of(parts, boundary, key, processes.rank())
    caches[boundary] = (key, cache)
    return cache


def read_rows(parts: Parts, cache: BoundaryCache | CacheParts, rows: np.ndarray) -> Tensor:
    """Read rows (n, ...) of a cache, on the clock."""
    with parts.watch.on("cache read"):
        return cache.read(rows)
