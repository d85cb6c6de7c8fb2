"""Training and predicting beside other busy programs: threads that spin, that sleep, and one alone.

    python benchmarks/beside_others.py DATA [--busy 0 1 2 4] [--seconds 4] [--pictures 40]
        [--work cached live predict] [--threads N] [OPTIONS]

DATA has train/ and val/ with a folder per class. The work: training steps of the two top block
groups on cached activations (cached) and on pictures (live), and `predict` of a run that is made
first. It is done by whole commands of transferkit, which stand still between measurements: in one,
threads spin while they wait, as they do by themselves (before), in one they sleep soon (after), one
has one thread. They take turns of --seconds each, beside the same busy processes, which count and
do nothing else. The table shows pictures per second, and each against one thread under the same
load and against itself on the idle machine. --pictures: of each class in train, the first N.
--threads: of before and after; without it as many as cores. OPTIONS: more options of finetune.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

from cache_effect import subset

PACKAGES = ("transferkit", "torch", "onnxruntime")
BATCH, VALIDATED = 32, 4
PREDICTED = 10_000  # pictures: no measurement is to see the end
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # what libgomp does by itself
SIDES: dict[str, dict[str, str]] = {
    "before": SPINNING,
    "after": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
AS = "--as"
BUSY = (sys.executable, "-c", "while True: pass")


def work_as_told(side: str, per_step: float, arguments: list[str]) -> None:
    """Run a command; for every number that is read, work for so many seconds.

    Writes the pictures per second of each. per_step: pictures of a training step.
    """
    from transferkit import console
    from transferkit.backbones import waiting
    from transferkit.cli import main

    waiting.sleep_soon()
    if side == "before":
        waiting.ONNX_RUNTIME.clear()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = until = pictures = 0.0

    def done(more: float) -> None:
        nonlocal started, until, pictures
        pictures += more
        if time.perf_counter() < until:
            return
        if until:
            print(pictures / (time.perf_counter() - started), file=answers, flush=True)
        seconds = float(sys.stdin.readline())
        started, pictures = time.perf_counter(), 0.0
        until = started + seconds

    shown = 0

    def show(_: object, event: object) -> None:
        nonlocal shown
        if type(event).__name__ == "Progress" and predicts:
            number: int = event.done  # type: ignore[attr-defined]
            done(number - shown)
            shown = number

    predicts = arguments[0] == "predict"
    console.LiveView.show = show  # type: ignore[method-assign,assignment]
    if not predicts:
        register_optimizer_step_post_hook(lambda *_: done(per_step))
    sys.argv = ["transferkit", *arguments]
    main()


class Side:
    """A command that stands still until it is to be measured."""

    def __init__(self, name: str, threads: int | None, per_step: float, arguments: list[str]):
        environment = {k: v for k, v in os.environ.items() if k not in WAITING}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        own = [sys.executable, __file__, AS, name, str(per_step), *arguments]
        self.process = subprocess.Popen(
            own,
            env={**environment, **SIDES[name]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, seconds: float) -> None:
        """Let it work for so many seconds, once it has come so far."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)

    def answer(self) -> float:
        """Return the pictures per second of what was asked for."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            raise SystemExit(f"ended too early: {self.process.communicate()[1][-2000:]}")
        return float(said)

    def end(self) -> None:
        """End it, wherever it is."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many processes busy."""
    running = [subprocess.Popen(BUSY) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def pictures_of(data: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """Link the pictures to train on, and those to predict; return both folders."""
    train = subset(data, folder / "data", count)
    for kind in (train / "val").iterdir():
        for file in sorted(kind.iterdir())[VALIDATED:]:
            file.unlink()
    predicted = folder / "predicted"
    predicted.mkdir()
    files = sorted(file for file in (train / "train").rglob("*") if file.is_file())
    for number, file in enumerate(islice(cycle(files), PREDICTED)):
        (predicted / f"{number:06d}{file.suffix}").symlink_to(file.resolve())
    return train, predicted


def commands(folder: Path, train: Path, predicted: Path, more: list[str]) -> dict[str, list[str]]:
    """Return the command of each kind of work; {} stands for the side's name."""
    learn = ["finetune", str(train), "--augment", "none", "--batch-size", str(BATCH), *more]
    long = [*learn, "--stages", "2:10000", "--patience", "10000", "--out", str(folder / "{}")]
    run = str(folder / "run")
    short = [*learn, "--stages", "head:1", "--out", run, "--cache-dir", str(folder / "cache")]
    subprocess.run([sys.executable, "-m", "transferkit", *short], check=True, capture_output=True)
    rows = ["-o", str(folder / "{}.csv"), "--engine", "onnx", "--batch-size", str(BATCH)]
    return {
        "cached": [*long, "--cache-dir", str(folder / "{}-cache")],
        "live": [*long, "--no-cache"],
        "predict": ["predict", run, str(predicted), *rows],
    }


def measure(
    sides: dict[str, Side], loads: list[int], seconds: float
) -> dict[int, dict[str, float]]:
    """Return the pictures per second: busy processes -> side -> figure."""
    for side in sides.values():
        side.ask(1)
        side.answer()  # it has begun, and is warm
    found: dict[int, dict[str, float]] = {}
    for load in loads:
        with busy(load):
            for name, side in sides.items():
                side.ask(seconds)
                found.setdefault(load, {})[name] = side.answer()
        print(f"  beside {load}: {found[load]}", file=sys.stderr, flush=True)
    return found


def rows(work: str, found: dict[int, dict[str, float]]) -> Iterator[str]:
    """Yield the lines of a kind of work."""
    idle = found[min(found)]
    for load, speeds in found.items():
        cells = [f"{speed:.1f}" for speed in speeds.values()]
        for name in ("before", "after"):
            cells.append(f"{speeds[name] / speeds['one thread']:.2f}")
            cells.append(f"{speeds[name] / idle[name]:.2f}")
        cells.append(f"{speeds['after'] / speeds['before']:.2f}")
        yield f"| {work} | {load} | {' | '.join(cells)} |"


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--work", nargs="+", default=["cached", "live", "predict"])
    parser.add_argument("--threads", type=int)
    options, more = parser.parse_known_args()
    table = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        train, predicted = pictures_of(options.data, folder, options.pictures)
        every = commands(folder, train, predicted, more)
        count = sum(1 for file in (train / "train").rglob("*") if file.is_file())
        per_step = count / -(-count // BATCH)
        for work in options.work:
            print(work, file=sys.stderr, flush=True)
            with ExitStack() as stack:
                sides = {}
                for name in SIDES:
                    given = [word.format(f"{work}-{name.split()[0]}") for word in every[work]]
                    sides[name] = Side(name, options.threads, per_step, given)
                    stack.callback(sides[name].end)
                table += rows(work, measure(sides, options.busy, options.seconds))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    cores = options.threads or len(os.sched_getaffinity(0))
    how = f"{cores} threads; {options.seconds:g} s each"
    print(f"{options.data}, {count} pictures; {how}; {versions}\n")
    heads = ["work", "busy processes", *(f"{name}, pictures/s" for name in SIDES)]
    for name in ("before", "after"):
        heads += [f"{name} / one thread", f"{name} / idle"]
    print(f"| {' | '.join([*heads, 'after / before'])} |\n|{' --- |' * (len(heads) + 1)}")
    print("\n".join(table))


if __name__ == "__main__":
    if sys.argv[1:2] == [AS]:
        work_as_told(sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    else:
        main()
