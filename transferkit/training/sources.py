"""Where the batches of a stage come from: the boundary cache, or the pictures themselves."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from transferkit import processes
from transferkit.data.kept import KeptPictures
from transferkit.data.loader import CLEAN, ahead
from transferkit.events import Event
from transferkit.training.boundary_cache import BoundaryCache, CacheParts
from transferkit.training.cache_choice import is_cached
from transferkit.training.cache_filling import (
    DERIVATION_ROWS,
    EXTRACTION_ROWS,
    fill,
    read_rows,
    whole,
)
from transferkit.training.material import Pick, gathered
from transferkit.training.parts import Parts
from transferkit.training.stages import PlannedStage


@dataclass(frozen=True)
class Source:
    """Batches for one stage, and the part of the network that turns them into logits.

    num_views: how many views each training picture has; None for a new one in every epoch.
    rest: computes the varied views where only the clean ones are there yet, see `open_source`.
    """

    network: nn.Module
    train_inputs: Callable[[Iterable[Pick]], Iterator[Tensor]]
    val_inputs: Callable[[], Iterator[Tensor]]
    cached: bool
    num_views: int | None
    rest: Callable[[], Generator[Event, None, object]] | None = None


def open_source(
    parts: Parts, stage: PlannedStage, base: int | None, clean_first: bool = False
) -> Generator[Event, None, Source]:
    """Return a stage's source, computing what its cache still lacks.

    base: boundary of the lowest cache, see `choose_base`. clean_first: return when the clean views
    are there; the source's `rest`, if it has one, is to be called before others are asked for.
    """
    if base is None or not is_cached(parts, stage, base):
        return _live(parts)
    clean_only = clean_first and processes.count() == 1
    cache = yield from fill(parts, base, stage.boundary, clean_only)
    every = whole(parts, stage.boundary, cache)
    source = _cached(parts, every, trainable_top(parts, stage))
    if cache.complete:
        return source
    return replace(source, rest=partial(fill, parts, base, stage.boundary))


def trainable_top(parts: Parts, stage: PlannedStage) -> nn.Module:
    """Return what a cached stage trains: activation at its boundary -> logits (N, K)."""
    top = len(parts.chain.groups)
    sections = [parts.chain.section(stage.boundary, top)] if stage.boundary < top else []
    return nn.Sequential(*sections, parts.classifier.head)


def _cached(parts: Parts, cache: BoundaryCache | CacheParts, network: nn.Module) -> Source:
    order = parts.material.rows(processes.count())

    def train_inputs(picks: Iterable[Pick]) -> Iterator[Tensor]:
        for positions, numbers in picks:
            yield read_rows(parts, cache, order.rows_of(positions, numbers))

    def val_inputs() -> Iterator[Tensor]:
        rows = processes.share(order.val_rows())
        for start in range(0, len(rows), DERIVATION_ROWS):
            yield read_rows(parts, cache, rows[start : start + DERIVATION_ROWS])

    return Source(network, train_inputs, val_inputs, True, parts.material.num_views)


def _live(parts: Parts) -> Source:
    material, train = parts.material, parts.material.train
    make = partial(material.make, kept=_kept_pictures(parts))

    def train_inputs(picks: Iterable[Pick]) -> Iterator[Tensor]:
        pairs = [list(zip(*pick, strict=True)) for pick in picks]
        views = ahead(make, [(int(train[i]), (int(v),)) for pick in pairs for i, v in pick])
        for pick in pairs:
            yield gathered(parts.watch, views, len(pick))

    def val_inputs() -> Iterator[Tensor]:
        items = [(int(p), (CLEAN,)) for p in processes.share(material.val)]
        views = ahead(make, items)
        for start in range(0, len(items), EXTRACTION_ROWS):
            yield gathered(parts.watch, views, min(EXTRACTION_ROWS, len(items) - start))

    return Source(parts.classifier, train_inputs, val_inputs, False, material.live_views)


def _kept_pictures(parts: Parts) -> KeptPictures | None:
    """Return where live stages keep decoded pictures; None where nothing may or can be kept."""
    handles, settings = parts.handles, parts.settings
    if handles.pictures is None and settings.enabled:
        try:
            settings.root.mkdir(parents=True, exist_ok=True)
            handles.pictures = KeptPictures(settings.root, settings.budget_bytes)
        except OSError:  # it only saves time
            return None
    return handles.pictures
