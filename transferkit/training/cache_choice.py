"""Which boundaries of a run are cached: the deepest one that fits, and those above it."""

from collections.abc import Iterator, Sequence

import numpy as np

from transferkit import processes
from transferkit.errors import UserError
from transferkit.events import Notice
from transferkit.training.boundary_cache import make_room
from transferkit.training.cache_filling import cache_names, row_shape
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage

UNDECIDED = -1
"""In the place of the deepest boundary that is cached, or None: before it is chosen."""


def cache_bytes(parts: Parts, boundary: int) -> int:
    """Return the size of the cache at a boundary."""
    itemsize = np.dtype(parts.settings.dtype).itemsize
    return parts.material.num_rows * int(np.prod(row_shape(parts, boundary))) * itemsize


def is_cacheable(parts: Parts, stage: PlannedStage) -> bool:
    """Whether a stage has a frozen trunk that can be cut off."""
    top = len(parts.chain.groups)
    cut = stage.boundary == top or (stage.boundary > 0 and parts.chain.verified)
    return parts.settings.enabled and cut and not stage.solves


def is_cached(parts: Parts, stage: PlannedStage, base: int | None) -> bool:
    """Whether a stage trains on cached activations. base: see `choose_base`."""
    return base is not None and is_cacheable(parts, stage) and stage.boundary >= base


def boundaries_of(parts: Parts, stages: Sequence[PlannedStage]) -> list[int]:
    """Return the boundaries at which stages can be cached, from the deepest."""
    return sorted({stage.boundary for stage in stages if is_cacheable(parts, stage)})


def needs(parts: Parts, stages: Sequence[PlannedStage]) -> Iterator[tuple[int, int]]:
    """Yield boundaries from the deepest, and the bytes of the caches from each one upwards."""
    boundaries = boundaries_of(parts, stages)
    sizes = [cache_bytes(parts, boundary) for boundary in boundaries]
    for position, boundary in enumerate(boundaries):
        yield boundary, sum(sizes[position:])


def choose_base(
    parts: Parts, stages: Sequence[PlannedStage], decided: int | None = UNDECIDED
) -> tuple[int | None, list[Notice]]:
    """Return the deepest boundary whose cache, with those above it, fits; None where none does.

    Stages below it train live; the notices say so and why. decided: what was chosen when the run
    began, which stays: other inputs give other bits. Raises UserError where it fits no more.
    """
    if decided == UNDECIDED:
        base: tuple[int | None, list[Notice]] = processes.from_first(_choose, parts, stages)
        return base
    if decided is not None and (why := processes.from_first(_lacking, parts, stages, decided)):
        what = "the run cannot go on to the same weights without its cached activations"
        raise UserError(what, why, f"make room in {parts.settings.root}, then --resume again")
    return decided, []


def _choose(parts: Parts, stages: Sequence[PlannedStage]) -> tuple[int | None, list[Notice]]:
    notices: list[Notice] = []
    for boundary in boundaries_of(parts, stages):
        if not (why := _lacking(parts, stages, boundary)):
            return boundary, notices
        name = next(s.name for s in stages if s.boundary == boundary and not s.solves)
        notices.append(Notice(f"stage {name} trains live: {why}", warning=True))
    return None, notices


def _lacking(parts: Parts, stages: Sequence[PlannedStage], base: int) -> str:
    """Make room for the caches from a boundary upwards; return why they do not fit, or ""."""
    needed = dict(needs(parts, stages))
    names = cache_names(parts, base, [boundary for boundary in needed if boundary > base])
    settings = parts.settings
    return make_room(settings.root, needed[base], settings.budget_bytes, names)
