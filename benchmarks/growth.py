"""How time, memory and disk grow with the number of pictures, for finetune and for predict.

    python benchmarks/growth.py DATA [--base 900] [--times 1 4 16 64] [--run RUN]
        [--output growth.md] [OPTIONS]

DATA has train/ and val/ with a folder per class. Of each class the first pictures are taken, about
`--base` in all, and linked over and over, as often as each number of `--times` says. OPTIONS are
further options of finetune. With --run that run predicts, and nothing is fine-tuned. Every command
starts anew, with an empty cache. Time: on the clock and of the processor. Memory: the highest
resident set, as the operating system counts it. Disk: what was left, that is run folder, caches,
rows. CPU ms per picture are those of the pictures that a row has more than the one before, so that
what a command takes to start does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES = ("--stages", "head:2, 1:2", "--views", "3")
COLUMNS = ("command", "pictures", "wall s", "CPU s", "CPU ms per picture", "peak MB", "disk MB")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Taken:
    """What a command took. peak, disk: bytes."""

    command: str
    pictures: int
    wall_s: float
    cpu_s: float
    peak: int
    disk: int


def first_pictures(data: Path, base: int) -> Iterator[Path]:
    """Yield about `base` pictures of a data set, the same share of every folder of a class."""
    folders: dict[Path, list[Path]] = {}
    for file in sorted(data.rglob("*")):
        if file.is_file() and file.suffix.lower() in SUFFIXES:
            folders.setdefault(file.parent, []).append(file)
    share = min(1.0, base / sum(map(len, folders.values())))
    for files in folders.values():
        yield from files[: max(1, round(len(files) * share))]


def repeat(data: Path, files: Sequence[Path], target: Path, times: int) -> int:
    """Link every picture `times` times below the same folders; return how many links there are."""
    for file in files:
        folder = target / file.parent.relative_to(data)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(times):
            (folder / f"{number}_{file.name}").symlink_to(file.resolve())
    return len(files) * times


def take(name: str, arguments: Sequence[str], pictures: int, work: Path) -> Taken:
    """Run a command to its end and measure it. What it leaves on disk lies below `work`."""
    before = used(work)
    command = [sys.executable, "-m", "transferkit", name, *arguments, "--json"]
    environment = os.environ | {"TRANSFERKIT_CACHE": str(work / "cache")}
    started = time.perf_counter()
    said = work / "said.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    if status:
        raise SystemExit(f"failed: {' '.join(command)}\n{said.read_text()}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Taken(name, pictures, wall_s, cpu_s, usage.ru_maxrss * 1024, used(work) - before)


def used(folder: Path) -> int:
    """Return the bytes on disk of all files below a folder, not of what links point to."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return sum(file.stat().st_blocks * 512 for file in files)


def measure(
    data: Path, files: Sequence[Path], times: int, more: Sequence[str], known: Path | None
) -> list[Taken]:
    """Fine-tune on the repeated pictures, then predict them with what came out, or a known run."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        count = repeat(data, files, work / "data", times)
        run, rows = known or work / "run", work / "rows.csv"
        learning = (str(work / "data"), *STAGES, "--out", str(run), *more)
        predicting = (str(run), str(work / "data"), "--output", str(rows))
        learned = [] if known else [take("finetune", learning, count, work)]
        return [*learned, take("predict", predicting, count, work)]


def as_table(found: Sequence[Taken]) -> list[str]:
    """Return a table in Markdown, command after command, each from few to many pictures."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for command in dict.fromkeys(row.command for row in found):
        before: Taken | None = None
        for row in (row for row in found if row.command == command):
            each = "" if before is None else f"{1000 * per_picture(before, row):.2f}"
            figures = (f"{row.wall_s:,.1f}", f"{row.cpu_s:,.1f}", each, f"{row.peak / 1e6:,.0f}")
            cells = (command, f"{row.pictures:,}", *figures, f"{row.disk / 1e6:,.1f}")
            lines.append(f"| {' | '.join(cells)} |")
            before = row
    return lines


def per_picture(before: Taken, row: Taken) -> float:
    """Return the processor seconds of each picture that one row has more than another."""
    return (row.cpu_s - before.cpu_s) / (row.pictures - before.pictures)


def main() -> None:
    """Measure size after size; print the table after each, and write it at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", type=int, default=900)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--output", type=Path)
    options, more = parser.parse_known_args()
    files = list(first_pictures(options.data, options.base))
    found: list[Taken] = []
    for times in options.times:
        found += measure(options.data, files, times, more, options.run)
        print("\n".join(as_table(found)), end="\n\n", flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(as_table(found)) + "\n")


if __name__ == "__main__":
    main()
