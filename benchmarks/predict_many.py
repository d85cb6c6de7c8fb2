"""Predict very many files: does memory stay flat, and does a killed job go on without a gap?

    python benchmarks/predict_many.py RUN PICTURES [--files 100000] [--kill-at 0.4]

PICTURES is a folder; its pictures are linked over and over until there are so many files. The
job is killed (SIGKILL) when that share of the rows is written, then continued with
--skip-existing; at the end every file must have exactly one row, in order.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def link_pictures(source: Path, target: Path, count: int) -> None:
    """Make `count` links to the pictures of a folder, a thousand in each subfolder."""
    pictures = sorted(p.resolve() for p in source.rglob("*") if p.is_file())
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    pictures = [picture for picture in pictures if picture.suffix.lower() in suffixes]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        folder = target / f"{number // 1000:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}{picture.suffix}").symlink_to(picture)


def resident_mb(pid: int) -> float:
    """Return the resident set of a process in MB, 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(command: list[str], rows: Path, kill_after: int | None) -> list[tuple[int, float]]:
    """Run a command, killed when that is due; return (rows written, resident MB) every second.

    What it needs before the first thousand rows, while it starts, is left out.
    """
    seen: list[tuple[int, float]] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        time.sleep(1)
        partial = rows.with_name(f"{rows.name}.partial")
        written = partial.read_bytes().count(b"\n") if partial.exists() else 0
        seen.append((written, resident_mb(process.pid)))
        if kill_after is not None and written >= kill_after:
            process.send_signal(signal.SIGKILL)
    if process.returncode and kill_after is None:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    at_start = seen[0][0]
    return [(written, size) for written, size in seen if size and written > at_start + 1000]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--kill-at", type=float, default=0.4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder, rows = Path(work) / "many", Path(work) / "rows.csv"
        link_pictures(options.pictures, folder, options.files)
        command = [sys.executable, "-m", "transferkit", "predict", str(options.run), str(folder)]
        command += ["--output", str(rows)]
        started = time.perf_counter()
        seen = watch(command, rows, int(options.files * options.kill_at))
        print(f"killed after {seen[-1][0]:,} rows")
        seen += watch([*command, "--skip-existing"], rows, None)
        print(f"done after {time.perf_counter() - started:.0f} s")
        steady = [size for _, size in seen]
        print(f"resident set while rows are written: {min(steady):.0f} to {max(steady):.0f} MB")
        with rows.open(newline="") as file:
            found = [row["path"] for row in csv.DictReader(file)]
        expected = sorted(str(path) for path in folder.rglob("*") if path.is_symlink())
        print(f"{len(found):,} rows, {len(set(found)):,} different, of {len(expected):,} files")
        print("without repeats or gaps" if sorted(found) == expected else "NOT the same files")
        print("in order" if found == expected else "NOT in order")


if __name__ == "__main__":
    main()
