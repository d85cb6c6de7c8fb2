"""Where the batches of a stage come from: the boundary cache, or the pictures themselves."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from transferkit import processes
from transferkit.backbones.chain import Chain
from transferkit.backbones.engine import Engine, choose_engine, make_engine
from transferkit.backbones.head import Classifier, FrozenTrunk
from transferkit.data.kept import KeptPictures
from transferkit.data.loader import CLEAN, ahead
from transferkit.errors import UserError
from transferkit.events import Event, Notice, Progress
from transferkit.stopwatch import Stopwatch
from transferkit.training.boundary_cache import (
    BoundaryCache,
    CacheParts,
    cache_key,
    make_room,
    part_name,
    weights_digest,
)
from transferkit.training.material import Material, Pick, Views, grouped
from transferkit.training.stages import PlannedStage, StagePlan

EXTRACTION_ROWS = 64
"""Views per run of the trunk; a fixed number, so that an interrupted fill repeats the same bits."""
DERIVATION_ROWS = 256
UNDECIDED = -1
"""In the place of the deepest boundary that is cached, or None: before it is chosen."""
COMPUTED_WITH = ("transferkit", "torch", "timm", "pillow", "onnxruntime")
"""Another version of one of these may give other numbers: its caches are not taken over."""


@dataclass(frozen=True)
class CacheSettings:
    """Where and how activations are kept.

    root: folder of all caches. budget_bytes: the most they may take together. engine: what runs
    the frozen trunk, see `choose_engine`. With `enabled` false every stage trains live.
    """

    root: Path
    budget_bytes: int
    dtype: str = "float16"
    engine: str = "auto"
    enabled: bool = True


@dataclass(frozen=True)
class Source:
    """Batches for one stage, and the part of the network that turns them into logits.

    num_views: how many views each training picture has; None for a new one in every epoch.
    rest: computes the varied views where only the clean ones are there yet, see `Sources.open`.
    """

    network: nn.Module
    train_inputs: Callable[[Iterable[Pick]], Iterator[Tensor]]
    val_inputs: Callable[[], Iterator[Tensor]]
    cached: bool
    num_views: int | None
    rest: Callable[[], Generator[Event, None, object]] | None = None


@dataclass
class Sources:
    """Opens the source of each stage of a run; holds the caches that the stages share.

    architecture: the backbone's name. base: the deepest boundary that is cached, see `choose_base`.
    watch: counts what the work takes, part by part.
    """

    classifier: Classifier
    chain: Chain
    material: Material
    settings: CacheSettings
    device: torch.device
    architecture: str
    watch: Stopwatch = field(default_factory=Stopwatch)
    base: int | None = None
    _caches: dict[int, tuple[str, BoundaryCache]] = field(default_factory=dict)
    _engines: dict[str, Engine] = field(default_factory=dict)  # of the trunk, by its cache's key
    _kept: KeptPictures | None = None
    num_parts: int = field(default_factory=processes.count)  # of a cache: one for each process
    _others: list[BoundaryCache] = field(default_factory=list)

    def close(self) -> None:
        """Let go of all caches; they stay on disk for the next run."""
        for cache in (*(cache for _, cache in self._caches.values()), *self._others):
            cache.close()
        self._caches.clear()
        self._others.clear()
        self._engines.clear()
        self._kept = None

    def row_shape(self, boundary: int) -> tuple[int, ...]:
        """Return the shape of one picture's activation at a boundary, without the batch axis."""
        size = self.material.maker.preprocessing
        images = torch.zeros(2, 3, size.height_px, size.width_px, device=self.device)
        with torch.inference_mode():
            return tuple(self.chain.trunk(boundary)(images).shape[1:])

    def cache_bytes(self, boundary: int) -> int:
        """Return the size of the cache at a boundary."""
        itemsize = np.dtype(self.settings.dtype).itemsize
        return self.material.num_rows * int(np.prod(self.row_shape(boundary))) * itemsize

    def cacheable(self, stage: PlannedStage) -> bool:
        """Whether a stage has a frozen trunk that can be cut off."""
        top = len(self.chain.groups)
        cut = stage.boundary == top or (stage.boundary > 0 and self.chain.verified)
        return self.settings.enabled and cut

    def is_cached(self, stage: PlannedStage) -> bool:
        """Whether a stage trains on cached activations, once `choose_base` has decided."""
        return self.base is not None and self.cacheable(stage) and stage.boundary >= self.base

    def trainable_top(self, stage: PlannedStage) -> nn.Module:
        """Return what a cached stage trains: activation at its boundary -> logits (N, K)."""
        parts: list[nn.Module] = [self.classifier.head]
        if stage.boundary < len(self.chain.groups):
            parts.insert(0, self.chain.section(stage.boundary, len(self.chain.groups)))
        return nn.Sequential(*parts)

    def choose_base(self, plan: StagePlan, decided: int | None = UNDECIDED) -> list[Notice]:
        """Find the deepest boundary whose cache, with those above it, fits the budget.

        Stages below it train live; a notice says so and why. decided: what was found when the run
        began, which stays: other inputs give other bits. Raises UserError where it fits no more.
        """
        if decided == UNDECIDED:
            self.base, notices = processes.from_first(self._choose, plan)
            return notices
        self.base = decided
        if decided is not None and (why := processes.from_first(self._lacks_room, plan, decided)):
            what = "the run cannot go on to the same weights without its cached activations"
            raise UserError(what, why, f"make room in {self.settings.root}, then --resume again")
        return []

    def _choose(self, plan: StagePlan) -> tuple[int | None, list[Notice]]:
        """Return the boundary, None where no cache fits, and the notices."""
        notices: list[Notice] = []
        for boundary in self._boundaries(plan):
            if not (why := self._lacks_room(plan, boundary)):
                return boundary, notices
            name = next(s.name for s in plan.stages if s.boundary == boundary)
            notices.append(Notice(f"stage {name} trains live: {why}", warning=True))
        return None, notices

    def _boundaries(self, plan: StagePlan) -> list[int]:
        return sorted({s.boundary for s in plan.stages if self.cacheable(s)})

    def _lacks_room(self, plan: StagePlan, base: int) -> str:
        """Make room for the caches from a boundary upwards; return why they do not fit, or ""."""
        boundaries = [b for b in self._boundaries(plan) if b >= base]
        own = self._keys(base, boundaries[1:])
        needed = sum(map(self.cache_bytes, boundaries))
        return make_room(self.settings.root, needed, self.settings.budget_bytes, own)

    def open(
        self, stage: PlannedStage, clean_first: bool = False
    ) -> Generator[Event, None, Source]:
        """Return a stage's source, computing what its cache still lacks.

        The caches depend on the weights below their boundary as they are now: a stage that follows
        one which changed them gets new ones. clean_first: return when the clean views are there;
        the source's `rest`, if it has one, is to be called before others are asked for.
        """
        if self.base is None or not self.is_cached(stage):
            return self._live()
        clean_only = clean_first and processes.count() == 1
        cache = yield from self._fill(stage.boundary, clean_only)
        source = self._cached(self._whole(stage.boundary, cache), self.trainable_top(stage))
        if cache.complete:
            return source
        return replace(source, rest=partial(self._fill, stage.boundary))

    def _fill(
        self, boundary: int, clean_only: bool = False
    ) -> Generator[Event, None, BoundaryCache]:
        """Return this process's part of the cache of a boundary, with what was asked for."""
        assert self.base is not None
        cache = yield from self._extract(self.base, clean_only)
        if cache.complete:
            self._engines.clear()  # it holds memory
        if boundary > self.base:
            cache = yield from self._derive(self.base, boundary, clean_only)
        return cache

    def _keys(self, base: int, above: list[int]) -> frozenset[str]:
        """Return the keys of the caches that a run needs if its weights stay as they are."""
        first = self._base_key(base)
        keys = [first, *(self._derived_key(first, base, boundary) for boundary in above)]
        return frozenset(
            part_name(k, p, self.num_parts) for k in keys for p in range(self.num_parts)
        )

    def key(self, boundary: int) -> str:
        """Return the key of a boundary's cache for the weights as they are, after `choose_base`."""
        assert self.base is not None
        key = self._base_key(self.base)
        return key if boundary == self.base else self._derived_key(key, self.base, boundary)

    def _base_key(self, boundary: int) -> str:
        trunk = FrozenTrunk(self.classifier, self.chain.trunk(boundary))
        parts = {
            "architecture": self.architecture,
            "data": self.material.index.fingerprint,
            "maker": asdict(self.material.maker),
            "num_views": self.material.num_views,
            "weights": weights_digest(trunk.state_dict()),
            "boundary": [group.name for group in self.chain.groups[:boundary]],
            "dtype": self.settings.dtype,
            "engine": choose_engine(self.settings.engine, self.device, self.material.num_rows),
            "batch": EXTRACTION_ROWS,
            "versions": {name: version(name) for name in COMPUTED_WITH},
        }
        return cache_key(parts)

    def _derived_key(self, base_key: str, base: int, boundary: int) -> str:
        parts = {
            "source": base_key,
            "weights": weights_digest(self.chain.section(base, boundary).state_dict()),
            "boundary": boundary,
            "engine": self._section_engine(),
        }
        return cache_key(parts)

    def _section_engine(self) -> str:
        """Choose by an eighth of the rows: the blocks between two boundaries are soon through."""
        return choose_engine(self.settings.engine, self.device, self.material.num_rows // 8)

    def _extract(self, boundary: int, clean_only: bool) -> Generator[Event, None, BoundaryCache]:
        cache = self._reopen(boundary, self._base_key(boundary))
        if cache.complete:
            return cache
        lists = self.material.view_lists(self.num_parts, processes.rank())
        groups = grouped(lists, EXTRACTION_ROWS, self._num_clean())
        sizes = [sum(len(numbers) for _, numbers in group) for group in groups]
        first, end = self._missing(cache, np.cumsum([0, *sizes]).tolist(), clean_only)
        if first == end:
            return cache
        engine = yield from self._trunk_engine(boundary, lists[-1])
        made = ahead(self.material.make, (item for group in groups[first:end] for item in group))
        for group in groups[first:end]:
            self._append(cache, engine, self._gather(made, len(group)))
            yield Progress("frozen trunk", cache.rows_done, cache.num_rows)
        return cache

    def _num_clean(self) -> int:
        return self.material.rows(self.num_parts).num_clean(processes.rank())

    def _missing(self, cache: BoundaryCache, edges: list[int], clean_only: bool) -> tuple[int, int]:
        """Return the first batch that a cache lacks, and the one at which to end.

        edges: (B + 1,) the first row of every batch, then the number of rows.
        """
        first = cache.forget_after(edges[:-1])
        end = edges.index(self._num_clean()) if clean_only else len(edges) - 1
        return min(first, end), end

    def _trunk_engine(self, boundary: int, example: Views) -> Generator[Event, None, Engine]:
        """Make what runs the trunk, once for a boundary and its weights."""
        key, _ = self._caches[boundary]
        if key in self._engines:
            return self._engines[key]
        trunk = FrozenTrunk(self.classifier, self.chain.trunk(boundary)).eval()
        name = choose_engine(self.settings.engine, self.device, self.material.num_rows)
        size = self.material.maker.preprocessing
        with self.watch.on("prepare engine"):
            views = torch.from_numpy(self.material.make(example)[:1])
            images = views.expand(2, 3, size.height_px, size.width_px).contiguous()
            engine = make_engine(trunk, images, name, self.device)
        if engine.notice:
            yield Notice(engine.notice, warning=True)
        self._engines = {key: engine}
        return engine

    def _append(self, cache: BoundaryCache, engine: Engine, inputs: Tensor) -> None:
        """Write what the engine makes of the inputs (n, ...) as the cache's next rows."""
        with self.watch.on("trunk"):
            rows = engine.run(inputs)
        with self.watch.on("cache write"):
            cache.append(rows)

    def _gather(self, made: Iterator[np.ndarray], count: int) -> Tensor:
        """Wait for the views (V, 3, H, W) of so many pictures; return them as one batch."""
        with self.watch.on("pictures"):
            return torch.from_numpy(np.concatenate([next(made) for _ in range(count)]))

    def _read(self, cache: BoundaryCache | CacheParts, rows: np.ndarray) -> Tensor:
        with self.watch.on("cache read"):
            return cache.read(rows)

    def _derive(
        self, base: int, boundary: int, clean_only: bool
    ) -> Generator[Event, None, BoundaryCache]:
        key, source = self._caches[base]
        cache = self._reopen(boundary, self._derived_key(key, base, boundary))
        clean, count = self._num_clean(), cache.num_rows
        starts = [*range(0, clean, DERIVATION_ROWS), *range(clean, count, DERIVATION_ROWS)]
        first, end = self._missing(cache, [*starts, count], clean_only)
        if first == end:
            return cache
        with self.watch.on("prepare engine"):
            section = self.chain.section(base, boundary)
            example = source.read(np.array([0, clean - 1]))
            engine = make_engine(section, example, self._section_engine(), self.device)
        if engine.notice:
            yield Notice(engine.notice, warning=True)
        for start, stop in pairwise([*starts, count][first : end + 1]):
            self._append(cache, engine, self._read(source, np.arange(start, stop)))
            yield Progress("blocks above the trunk", cache.rows_done, cache.num_rows)
        return cache

    def _reopen(self, boundary: int, key: str) -> BoundaryCache:
        """Open the cache of a boundary under its key, closing one with another key."""
        if boundary in self._caches:
            known, cache = self._caches[boundary]
            if known == key:
                return cache
            cache.close()
        cache = self.part(boundary, key, processes.rank())
        self._caches[boundary] = (key, cache)
        return cache

    def part(self, boundary: int, key: str, part: int) -> BoundaryCache:
        """Open what process `part` computes of the cache under a key."""
        starts = self.material.rows(self.num_parts).starts()
        folder = self.settings.root / part_name(key, part, self.num_parts)
        rows, shape = starts[part + 1] - starts[part], self.row_shape(boundary)
        return BoundaryCache(folder, rows, shape, self.settings.dtype)

    def _whole(self, boundary: int, own: BoundaryCache) -> BoundaryCache | CacheParts:
        """Return the cache of a boundary with the parts of all processes, once they are there."""
        if processes.count() == 1:
            return own
        processes.from_all(None)
        for cache in self._others:
            cache.close()
        key, _ = self._caches[boundary]
        others = {p: self.part(boundary, key, p) for p in range(self.num_parts)}
        others.pop(processes.rank()).close()
        self._others = list(others.values())
        every = [others.get(p, own) for p in range(self.num_parts)]
        return CacheParts(every, self.material.rows(self.num_parts).starts())

    def _cached(self, cache: BoundaryCache | CacheParts, network: nn.Module) -> Source:
        order = self.material.rows(self.num_parts)

        def train_inputs(picks: Iterable[Pick]) -> Iterator[Tensor]:
            for positions, numbers in picks:
                yield self._read(cache, order.rows_of(positions, numbers))

        def val_inputs() -> Iterator[Tensor]:
            rows = processes.share(order.val_rows())
            for start in range(0, len(rows), DERIVATION_ROWS):
                yield self._read(cache, rows[start : start + DERIVATION_ROWS])

        views = self.material.num_views
        return Source(network, train_inputs, val_inputs, cached=True, num_views=views)

    def _live(self) -> Source:
        train = self.material.train
        make = partial(self.material.make, kept=self._keep())

        def train_inputs(picks: Iterable[Pick]) -> Iterator[Tensor]:
            pairs = [list(zip(*pick, strict=True)) for pick in picks]
            items = [(int(train[i]), (int(v),)) for pick in pairs for i, v in pick]
            made = ahead(make, items)
            for pick in pairs:
                yield self._gather(made, len(pick))

        def val_inputs() -> Iterator[Tensor]:
            items = [(int(p), (CLEAN,)) for p in processes.share(self.material.val)]
            made = ahead(make, items)
            for start in range(0, len(items), EXTRACTION_ROWS):
                yield self._gather(made, min(EXTRACTION_ROWS, len(items) - start))

        views = self.material.live_views
        return Source(self.classifier, train_inputs, val_inputs, cached=False, num_views=views)

    def _keep(self) -> KeptPictures | None:
        """Return where live stages keep decoded pictures; None where nothing may or can be kept."""
        if self._kept is None and self.settings.enabled:
            try:
                self.settings.root.mkdir(parents=True, exist_ok=True)
                self._kept = KeptPictures(self.settings.root, self.settings.budget_bytes)
            except OSError:  # it only saves time
                return None
        return self._kept
