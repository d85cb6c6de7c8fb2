"""The verb `lab`: small experiments that show what a technique does."""

import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.errors import usage_error
from transferkit.events import Show, Working
from transferkit.files.atomic_write import disk_error, write_plot
from transferkit.lab.topics import TOPICS

ALL = "all"


@dataclass(frozen=True)
class Shown:
    """An experiment that was carried out. sentences, table: see `Finding`."""

    topic: str
    title: str
    sentences: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    figure: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return vars(self)


def named(topic: str) -> tuple[str, ...]:
    """Return the topics that a word means. Raises a usage error for one that is none."""
    name = topic.strip().lower()
    if name == ALL:
        return tuple(TOPICS)
    if name not in TOPICS:
        close = difflib.get_close_matches(name, TOPICS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        where, remedy = f"there are {', '.join(TOPICS)}, all", "`transferkit lab` lists them"
        raise usage_error(f"no experiment is called {topic!r}", where, hint + remedy)
    return (name,)


def lab(topic: str, folder: Path, show: Show) -> Iterator[Shown]:
    """Carry out an experiment, or all of them, one after the other, and draw lab-TOPIC.png.

    folder: of the figures; made where it is missing. Raises UserError where it cannot be written.
    """
    from transferkit.lab.finding import draw

    names = named(topic)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    for name in names:
        show(Working(f"{name}: {TOPICS[name].summary}"))
        started = time.perf_counter()
        found = TOPICS[name].run()
        path = folder / f"lab-{name}.png"
        write_plot(path, draw(found))
        seconds = time.perf_counter() - started
        yield Shown(name, found.title, found.sentences, found.table, path, seconds)
