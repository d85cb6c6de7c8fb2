"""Peak memory of a run on a data set, and on the same pictures repeated by links.

    python benchmarks/memory_growth.py DATA [--times 10]

DATA has train/ and val/ with a folder per class. Prints the cache's size on disk and the highest
resident set (as the operating system counts it for the finished process) of both runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STAGES = "head:2, 1:2"


def repeat(data: Path, target: Path, times: int) -> None:
    """Link every picture `times` times below the same class folders."""
    for file in data.rglob("*"):
        if file.is_file() and file.parent != data:
            for number in range(times):
                link = target / file.parent.relative_to(data) / f"{number}_{file.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())


def measure(data: Path, work: Path) -> tuple[int, int]:
    """Run a short plan; return (peak resident bytes, bytes of cache on disk)."""
    command = [sys.executable, "-m", "transferkit", "finetune", str(data), "--json"]
    command += ["--stages", STAGES, "--out", str(work / "run"), "--cache-dir", str(work / "cache")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run failed: {' '.join(command)}")
    cache = sum(f.stat().st_blocks * 512 for f in (work / "cache").rglob("*") if f.is_file())
    return usage.ru_maxrss * 1024, cache


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    print(f"{'pictures':>10}{'peak MB':>10}{'cache MB':>10}")
    for times in (1, options.times):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            repeat(options.data, work / "data", times)
            peak, cache = measure(work / "data", work)
            print(f"{times:>9}x{peak / 1e6:>10.0f}{cache / 1e6:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
