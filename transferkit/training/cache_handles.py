"""The boundary caches that a run holds open, and where they lie."""

from dataclasses import dataclass, field
from pathlib import Path

from transferkit.backbones.engine import Engine
from transferkit.config import Config
from transferkit.data.kept import KeptPictures
from transferkit.files.cache_dir import default_cache_dir
from transferkit.training.boundary_cache import BoundaryCache
from transferkit.units import parse_bytes


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


def cache_settings(config: Config) -> CacheSettings:
    """Resolve where caches lie and how large they may be."""
    return CacheSettings(
        root=(config.cache.dir or default_cache_dir()).expanduser(),
        budget_bytes=parse_bytes(config.cache.budget),
        dtype=config.cache.dtype,
        engine=config.device.engine,
        enabled=config.cache.enabled,
    )


@dataclass
class CacheHandles:
    """What a run holds open of its caches.

    caches: boundary -> key and this process's part. engines: what fills a cache, by its key.
    others: parts of other processes. pictures: decoded ones, for live stages.
    """

    caches: dict[int, tuple[str, BoundaryCache]] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    others: list[BoundaryCache] = field(default_factory=list)
    pictures: KeptPictures | None = None

    def close(self) -> None:
        """Close all caches; they stay on disk for the next run."""
        for cache in (*(cache for _, cache in self.caches.values()), *self.others):
            cache.close()
        self.caches.clear()
        self.others.clear()
        self.engines.clear()
        self.pictures = None
