"""Where a run's time goes: seconds per stage and part of the work."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

OUTSIDE = -1
"""Stands for a stage: the time before the first stage and after the last."""
OTHER = "other"
"""All time that no other part accounts for, so that the parts add up to the whole."""
PARTS = (
    *("imports", "fetch", "scan", "pretraining", "backbone", "measuring", "batch-norm statistics"),
    *("range test", "prepare engine", "pictures", "trunk", "cache write", "cache read"),
    *("training", "evaluation", "checkpoint", "final validation", "plots", OTHER),
)
"""All parts, in the order in which they are shown."""

Seconds = dict[int, dict[str, float]]
"""Position of the stage in the plan, or `OUTSIDE` -> part -> seconds."""


@dataclass
class Stopwatch:
    """Counts the seconds since its creation per `stage` and per part of the work, see `on`.

    Parts nest: while an inner one runs, the outer one is paused, so no second counts twice.
    clock: returns seconds. seconds: counted up to the last change of part or stage.
    """

    clock: Callable[[], float] = time.perf_counter
    seconds: Seconds = field(default_factory=dict)
    stage: int = OUTSIDE

    def __post_init__(self) -> None:
        self._open = [OTHER]
        self._since = self.clock()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Attribute the time within the context to a part, one of `PARTS`."""
        if part not in PARTS:
            raise ValueError(f"{part!r} is not one of PARTS")
        self._settle()
        self._open.append(part)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def enter(self, stage: int) -> None:
        """Attribute the time from now on to another stage."""
        self._settle()
        self.stage = stage

    def add(self, earlier: Mapping[int, Mapping[str, float]]) -> None:
        """Add the seconds that an earlier process spent on the same run."""
        for stage, parts in earlier.items():
            for part, seconds in parts.items():
                self._count(stage, part, seconds)

    def read(self) -> Seconds:
        """Return the seconds up to now."""
        self._settle()
        return {stage: dict(parts) for stage, parts in self.seconds.items()}

    def total(self) -> float:
        """Return all seconds up to now."""
        return sum(sum(parts.values()) for parts in self.read().values())

    def _settle(self) -> None:
        now = self.clock()
        self._count(self.stage, self._open[-1], now - self._since)
        self._since = now

    def _count(self, stage: int, part: str, seconds: float) -> None:
        parts = self.seconds.setdefault(stage, {})
        parts[part] = parts.get(part, 0.0) + seconds


def by_part(seconds: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Add up the stages: part -> seconds, in the order of `PARTS`."""
    spent = {part for parts in seconds.values() for part in parts}
    every = seconds.values()
    return {p: sum(parts.get(p, 0.0) for parts in every) for p in PARTS if p in spent}
