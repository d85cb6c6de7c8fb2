"""Several processes (torchrun, gloo) against one on the same machine: finetune and predict.

    python benchmarks/two_processes.py DATA [--processes 2] [--stages "head:10, 1:5"]
        [--pictures N] [--rounds 1] [--out FOLDER] [OPTIONS]

DATA has train/ and val/ with a folder per class; --pictures takes the first N of each of them.
OPTIONS are further options of finetune, of both sides. One process has all cores to itself; several
share them, each with its part of the threads (OMP_NUM_THREADS). Time is that of whole commands,
launcher included, each with an empty cache; "its stages" leaves out what comes before and after
them. `predict` is of the same run on both sides, over all pictures of DATA. Rounds take turns; the
table shows medians. Also says whether both sides learned and wrote the same. With --out it writes
FOLDER/two_processes.md.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from cache_effect import subset

PACKAGES = ("transferkit", "torch", "timm", "onnxruntime")


@dataclass
class Side:
    """How many processes a side has, and what its rounds took. found: metrics of the last one."""

    processes: int
    cores: int
    finetune_s: list[float] = field(default_factory=list)
    stages_s: list[float] = field(default_factory=list)
    predict_s: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the table calls it."""
        threads = max(1, self.cores // self.processes)
        return f"{self.processes} process{'es' * (self.processes > 1)}, {threads} threads each"


def run(side: Side, *arguments: str) -> tuple[float, bytes]:
    """Run a command of transferkit in a side's processes; return its seconds and its output."""
    command = [sys.executable, "-m", "transferkit", *arguments]
    if side.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(side.processes)]
        command[1:1] = launcher
    threads = {"OMP_NUM_THREADS": str(max(1, side.cores // side.processes))}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | threads)
    seconds = time.perf_counter() - started
    print(f"{arguments[0]}, {side.name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode(errors="replace")[-3000:])
    return seconds, done.stdout


def learn(side: Side, data: Path, out: Path, options: list[str]) -> None:
    """Fine-tune into a new run folder, with a cache of its own, and note what that took."""
    given = [str(data), "--out", str(out), "--cache-dir", f"{out}-cache", "--json", *options]
    seconds, said = run(side, "finetune", *given)
    summary = json.loads(said)
    side.finetune_s.append(seconds)
    side.stages_s.append(sum(stage["seconds"] for stage in summary["stages"]))
    side.found = {name: summary["metrics"][name] for name in ("accuracy", "log_loss")}


def predict(side: Side, model: Path, data: Path, output: Path) -> None:
    """Predict all pictures into a table, and note what that took and what it says."""
    seconds, _ = run(side, "predict", str(model), str(data), "--output", str(output))
    side.predict_s.append(seconds)
    with output.open(newline="", encoding="utf-8") as file:
        side.rows = list(csv.reader(file))
    output.unlink()


def table(sides: list[Side]) -> list[str]:
    """Return the lines of the table and of what was the same."""
    columns = ["finetune s", "its stages s", "predict s"]
    lines = [f"| | {' | '.join(columns)} | accuracy | log loss |", "|" + " --- |" * 6]
    medians = []
    for side in sides:
        taken = (side.finetune_s, side.stages_s, side.predict_s)
        medians.append([statistics.median(seconds) for seconds in taken])
        shown = [f"{seconds:.1f}" for seconds in medians[-1]]
        shown += [f"{side.found['accuracy']:.3f}", f"{side.found['log_loss']:.5f}"]
        lines.append(f"| {side.name} | {' | '.join(shown)} |")
    ratios = [f"{one / many:.2f}" for one, many in zip(*medians, strict=True)]
    lines.append(f"| one over {sides[1].processes} | {' | '.join(ratios)} | | |")
    one, many = (side.rows[1:] for side in sides)
    differ = sum(a != b for a, b in zip(one, many, strict=True))
    same = "are the same" if not differ else f"differ in {differ} of {len(one)}"
    return [*lines, "", f"The rows of predict {same}."]


def main() -> None:
    """Run both sides in turns; print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stages", default="head:10, 1:5")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options, more = parser.parse_known_args()
    cores = len(os.sched_getaffinity(0))
    sides = [Side(1, cores), Side(options.processes, cores)]
    learning = ["--stages", options.stages, "--patience", "1000", *more]
    with tempfile.TemporaryDirectory() as folder:
        work, data = Path(folder), options.data
        if options.pictures:
            data = subset(data, work / "data", options.pictures)
        for number in range(options.rounds):
            for side in sides:
                learn(side, data, work / f"run{number}-{side.processes}", learning)
            for side in sides:
                predict(side, work / "run0-1", data, work / "rows.csv")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    of = f", {options.pictures} pictures of each class and split" if options.pictures else ""
    title = f"{options.data}{of}; {options.stages}; {cores} cores; gloo; rounds: {options.rounds}"
    lines = [f"{title}; {versions}", "", *table(sides)]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "two_processes.md"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
