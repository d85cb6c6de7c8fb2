"""Epochs on cached boundary activations against the same epochs computed live, in one run.

    python benchmarks/cache_effect.py DATA [--stages "head:30, 1:12, 2:12"] [--live-epochs 1]
        [--seeds 0] [--pictures N]

DATA has train/ and val/ with a folder per class. For every seed `transferkit finetune DATA` runs
the stages on its caches, and with `--no-cache` as many epochs of each stage as --live-epochs says;
0 runs all of them. Prints for each stage the seconds of an epoch's training steps, and for the
whole plan what it took on the caches, computing them included, against live: measured where all
epochs were run, else an epoch of each stage, validated, times its epochs. Every epoch counts alike,
the first as well; no stage ends early. --pictures: of each class in each split, the first N.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def subset(data: Path, target: Path, count: int) -> Path:
    """Link the first `count` pictures of every class in every split below `target`."""
    for folder in (
        f
        for split in sorted(data.iterdir())
        if split.is_dir()
        for f in split.iterdir()
        if f.is_dir()
    ):
        made = target / folder.relative_to(data)
        made.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:count]:
            (made / file.name).symlink_to(file.resolve())
    return target


def summary_of(data: Path, stages: str, seed: int, *extra: str) -> dict:
    """Run a plan into a temporary folder and return its summary, with the seconds of it all."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "transferkit", "finetune", str(data), "--json"]
        command += ["--stages", stages, "--out", str(Path(folder) / "run"), "--seed", str(seed)]
        command += ["--cache-dir", str(Path(folder) / "cache"), "--patience", "1000", *extra]
        print(f"{stages}, seed {seed} {' '.join(extra)}: ", end="", file=sys.stderr, flush=True)
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr.decode()[-2000:])
        seconds = time.perf_counter() - started
        print(f"{seconds:.0f} s", file=sys.stderr, flush=True)
    found: dict = json.loads(done.stdout)
    return found | {"whole_s": seconds}


def shortened(stages: str, epochs: int) -> str:
    """Return the stages with so many epochs each; 0 leaves them alone."""
    if not epochs:
        return stages
    return ", ".join(f"{stage.partition(':')[0].strip()}:{epochs}" for stage in stages.split(","))


def live_seconds(live: dict, cached: dict) -> float:
    """Return what the cached run's epochs would take live: a validated epoch of each stage, times
    their number, and what the live run took besides its stages.
    """
    pairs = list(zip(live["stages"], cached["stages"], strict=True))
    besides = live["whole_s"] - sum(slow["seconds"] for slow, _ in pairs)
    return besides + sum(slow["seconds"] / slow["epochs"] * fast["epochs"] for slow, fast in pairs)


def main() -> None:
    """Run all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--stages", default="head:30, 1:12, 2:12")
    parser.add_argument("--live-epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pictures", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if options.pictures:
            data = subset(data, Path(folder, "data"), options.pictures)
        cached = [summary_of(data, options.stages, seed) for seed in options.seeds]
        short = shortened(options.stages, options.live_epochs)
        live = [summary_of(data, short, seed, "--no-cache") for seed in options.seeds]
    print("| stage | live s/epoch | cached s/epoch | ratio |\n| --- | --- | --- | --- |")
    for number, stage in enumerate(cached[0]["stages"]):
        slow, fast = (
            statistics.median(run["stages"][number]["seconds_per_epoch"] for run in runs)
            for runs in (live, cached)
        )
        print(f"| {stage['name']} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f} |")
    slow_s = [live_seconds(a, b) for a, b in zip(live, cached, strict=True)]
    fast_s = [run["whole_s"] for run in cached]
    how = "computed from its epochs" if options.live_epochs else "measured"
    print(f"\n{options.stages}: whole command, seeds {options.seeds}; live {how}\n")
    print("| | median seconds | accuracy |\n| --- | --- | --- |")
    for name, runs, seconds in (("live", live, slow_s), ("cached", cached, fast_s)):
        whole = name == "cached" or not options.live_epochs
        shown = ", ".join(f"{run['metrics']['accuracy']:.3f}" for run in runs) if whole else "-"
        print(f"| {name} | {statistics.median(seconds):.0f} | {shown} |")
    print(f"| ratio | {statistics.median(slow_s) / statistics.median(fast_s):.1f} | |")


if __name__ == "__main__":
    main()
