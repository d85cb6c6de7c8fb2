"""Pictures per second of SimCLR against LightlyTrain: same pictures, backbone and batch, one run.

    python benchmarks/simclr_throughput.py PICTURES --peer-python /path/to/venv/bin/python
        [--count 320] [--image-size 224] [--batch-size 64] [--epochs 3] [--rounds 1]

The peer lives in the environment of --peer-python, see README.md. Each side runs as a process of
its own, once for one epoch and once for `1 + epochs`; the difference in time is what the further
epochs took, so that starting up does not count. Rounds alternate between the two.
"""

import argparse
import importlib.metadata
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKBONE = "resnet18"
PEER = """
import sys, contextlib
with contextlib.suppress(ImportError):
    import transferkit.timm_import  # mends torchvision beside a torch for CPUs alone
import lightly_train
data, out, epochs, batch, size = sys.argv[1:]
lightly_train.pretrain(
    out=out, data=data, model="timm/resnet18", method="simclr", epochs=int(epochs),
    batch_size=int(batch), transform_args={"image_size": (int(size), int(size))},
    accelerator="cpu", precision="32-true", model_args={"pretrained": False},
)
"""


def wall_s(command: list[str]) -> float:
    """Run a command without its output; return its seconds. Shows the output when it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace")[-3000:])
        raise SystemExit(f"failed: {' '.join(command[:4])}")
    return time.perf_counter() - started


def command_of(side: str, data: Path, out: Path, epochs: int, options: argparse.Namespace) -> list:
    """Return the command that pretrains for so many epochs."""
    numbers = [str(options.batch_size), str(options.image_size)]
    if side == "peer":
        return [options.peer_python, "-c", PEER, str(data), str(out), str(epochs), *numbers]
    ours = [sys.executable, "-m", "transferkit", "pretrain", str(data), "--method", "simclr"]
    ours += ["--backbone", BACKBONE, "--holdout", "0", "--epochs", str(epochs), "--out", str(out)]
    return [*ours, "--batch-size", numbers[0], "--image-size", numbers[1]]


def speed(side: str, data: Path, options: argparse.Namespace) -> float:
    """Return the pictures per second of the epochs after the first."""
    taken = []
    for epochs in (1, 1 + options.epochs):
        with tempfile.TemporaryDirectory() as folder:
            taken.append(wall_s(command_of(side, data, Path(folder, "run"), epochs, options)))
    seen = options.count // options.batch_size * options.batch_size
    return seen * options.epochs / (taken[1] - taken[0])


def peer_version(python: str) -> str:
    """Return the version of the peer in its environment."""
    text = "import importlib.metadata as m; print(m.version('lightly-train'), m.version('torch'))"
    found = subprocess.run([python, "-c", text], stdout=subprocess.PIPE, check=True, text=True)
    return found.stdout.strip()


def main() -> None:
    """Measure both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(p for p in Path(options.pictures).rglob("*") if p.is_file())
        for number, path in enumerate(files[:: max(1, len(files) // options.count)]):
            if number < options.count:
                shutil.copy(path, Path(folder, f"{number:05d}{path.suffix}"))
        for _ in range(options.rounds):
            for side, speeds in found.items():
                speeds.append(speed(side, Path(folder), options))
    versions = {n: importlib.metadata.version(n) for n in ("transferkit", "torch", "lightly")}
    print(f"{BACKBONE} at {options.image_size} px, batches of {options.batch_size}, ", end="")
    print(f"{options.count} pictures, {os.cpu_count()} cores; ours: {versions}; ", end="")
    print(f"LightlyTrain and its torch: {peer_version(options.peer_python)}\n")
    print("| | pictures/s |\n| --- | --- |")
    for name, side in (("transferkit", "ours"), ("LightlyTrain", "peer")):
        print(f"| {name} | {', '.join(f'{value:.1f}' for value in found[side])} |")
    ratio = statistics.median(found["ours"]) / statistics.median(found["peer"])
    print(f"\nratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
