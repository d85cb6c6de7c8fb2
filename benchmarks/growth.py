"""How time, memory and disk grow with the number of pictures, for finetune and for predict.

    python benchmarks/growth.py DATA [--base 900] [--times 1 4 16 64] [--run RUN]
        [--commands finetune predict] [--output growth.md] [OPTIONS]

DATA has train/ and val/ with a folder per class. Of each class the first pictures are taken, about
`--base` in all, and linked over and over, as often as each number of `--times` says. OPTIONS are
further options of finetune, e.g. `--stages solve`, from 1,000 to 30,000 pictures:

    python benchmarks/growth.py DATA --base 500 --times 2 6 20 60 --commands finetune --stages solve

With --run that run predicts, and nothing is fine-tuned. Every command starts anew, with an empty
cache. Time: on the clock and of the processor. Memory: the highest
resident set, as the operating system counts it. Disk: what was left, that is run folder, caches,
rows. CPU ms per picture are those of the pictures that a row has more than the one before, so that
what a command takes to start does not count. Below the table: whether memory is flat, the highest
peak at most a tenth above that of the fewest pictures; and whether time is linear, no row further
than a tenth of its time from a straight line (least squares of the relative distances).
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

COMMANDS = ("finetune", "predict")
TENTH = 0.1
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
    files: Sequence[Path], times: int, more: Sequence[str], options: argparse.Namespace
) -> list[Taken]:
    """Fine-tune on the repeated pictures, then predict them with what came out, or a known run."""
    known: Path | None = options.run
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        count = repeat(options.data, files, work / "data", times)
        run, rows = known or work / "run", work / "rows.csv"
        learning = (str(work / "data"), *STAGES, "--out", str(run), *more)
        predicting = (str(run), str(work / "data"), "--output", str(rows))
        found = [] if known else [take("finetune", learning, count, work)]
        if "predict" in options.commands:
            found.append(take("predict", predicting, count, work))
        return [row for row in found if row.command in options.commands]


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


def line_through(rows: Sequence[Taken]) -> tuple[float, float, float]:
    """Return the straight line of the wall time: s, s per picture, and its largest distance.

    The distances are relative to each row's time, and so are the least squares.
    """
    import numpy

    times = numpy.array([row.wall_s for row in rows])
    terms = numpy.array([(1.0, row.pictures) for row in rows])
    start, each = numpy.linalg.lstsq(terms / times[:, None], numpy.ones(len(rows)))[0]
    return start, each, float(abs(terms @ (start, each) / times - 1).max())


def judged(found: Sequence[Taken]) -> Iterator[str]:
    """Yield for each command whether its memory is flat and its time linear."""
    for command in dict.fromkeys(row.command for row in found):
        rows = sorted((row for row in found if row.command == command), key=lambda r: r.pictures)
        first, last = rows[0], rows[-1]
        if len(rows) < 3:  # any two lie on a line
            continue
        highest = max(row.peak for row in rows)
        flat = "flat" if highest <= (1 + TENTH) * first.peak else "NOT flat"
        kb = (last.peak - first.peak) / (last.pictures - first.pictures) / 1e3
        start, each, distance = line_through(rows)
        linear = "linear" if distance <= TENTH else "NOT linear"
        yield (
            f"{command}, {first.pictures:,} to {last.pictures:,} pictures: memory is {flat} "
            f"(highest {highest / first.peak:.2f} times that of the fewest, {kb:+.1f} kB per "
            f"picture); time is {linear} ({start:.1f} s + {1000 * each:.2f} ms per picture, "
            f"furthest from it {distance:.0%})"
        )


def main() -> None:
    """Measure size after size; print the table after each, and write it at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", type=int, default=900)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--output", type=Path)
    options, more = parser.parse_known_args()
    files = list(first_pictures(options.data, options.base))
    found: list[Taken] = []
    for times in options.times:
        found += measure(files, times, more, options)
        lines = [*as_table(found), "", *judged(found)]
        print("\n".join(lines), end="\n\n", flush=True)
        if options.output is not None:
            options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
