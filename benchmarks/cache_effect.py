"""Epochs on cached boundary activations against the same epochs computed live, in one run.

    python benchmarks/cache_effect.py DATA [--stages "head:3, 1:3, 2:3"]

Runs `transferkit finetune DATA` twice with the same plan, with and without `--no-cache`, one after
the other, and prints seconds per epoch from the runs' own tables. Both see each picture once an
epoch; the live run also decodes it. The first epoch of a stage counts like the others.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def stages_of(data: str, stages: str, *extra: str) -> list[dict]:
    """Run a plan into a temporary folder and return its stage summaries."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "transferkit", "finetune", data, "--json"]
        command += ["--stages", stages, "--out", str(Path(folder) / "run"), *extra]
        command += ["--cache-dir", str(Path(folder) / "cache"), "--patience", "1000"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["stages"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--stages", default="head:3, 1:3, 2:3")
    options = parser.parse_args()
    cached = stages_of(options.data, options.stages)
    live = stages_of(options.data, options.stages, "--no-cache")
    print(f"{'stage':<10}{'live s/epoch':>14}{'cached s/epoch':>16}{'ratio':>8}")
    for fast, slow in zip(cached, live, strict=True):
        ratio = slow["seconds_per_epoch"] / fast["seconds_per_epoch"]
        print(
            f"{fast['name']:<10}{slow['seconds_per_epoch']:>14.2f}"
            f"{fast['seconds_per_epoch']:>16.3f}{ratio:>8.1f}"
        )


if __name__ == "__main__":
    main()
