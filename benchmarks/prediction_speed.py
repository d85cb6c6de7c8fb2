"""From files to features and to predictions: how near to what the machine can do, in one run.

    python benchmarks/prediction_speed.py RUN PICTURES [--rounds 2] [--pictures 900]
        [--batch-size 64]

The ideal is counted from two measurements: decoding and resizing with one thread, shared out among
all cores, and bare ONNX Runtime on pictures in memory with all cores. Against it: what `embed` and
`predict` do per further picture (whole commands on all pictures and on a quarter of them, both on
ONNX Runtime, so that starting up and exporting do not count), and an eager timm model in a plain
loop that decodes, transforms and runs batch after batch, on a part of them. Rounds take turns; the
table shows medians. --pictures: how many of the folder's, taken again where it has fewer.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from PIL import Image

from transferkit.data.loader import CLEAN
from transferkit.inference.predict import load_run, picture_engine
from transferkit.runs.folder import open_run


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def command_s(arguments: list[str]) -> float:
    """Return the seconds of a whole command of transferkit."""
    command = [sys.executable, "-m", "transferkit", *arguments]
    return seconds_of(lambda: subprocess.run(command, capture_output=True, check=True))


def per_picture(verb: str, run: str, files: list[Path], *extra: str) -> float:
    """Return the pictures per second of a command, by the difference to a quarter of them."""
    taken = []
    for part in (files[: len(files) // 4], files):
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder, "pictures")
            listed.mkdir()
            for number, file in enumerate(part):
                Path(listed, f"{number:06d}{file.suffix}").symlink_to(file.resolve())
            out = str(Path(folder, "out.csv" if verb == "predict" else "out.safetensors"))
            taken.append(command_s([verb, run, str(listed), "-o", out, "--engine", "onnx", *extra]))
    return (len(files) - len(files) // 4) / (taken[1] - taken[0])


def plain_loop(name: str, files: list[Path], batch_size: int) -> float:
    """Return the pictures per second of eager timm: decode, transform, run, one after another."""
    model = timm.create_model(name, pretrained=False).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)

    def work() -> None:
        with torch.inference_mode():
            for start in range(0, len(files), batch_size):
                part = files[start : start + batch_size]
                model(torch.stack([transform(Image.open(f).convert("RGB")) for f in part]))

    return len(files) / seconds_of(work)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("folder", metavar="PICTURES")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=900, dest="count")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    found_files = sorted(Path(options.folder).rglob("*"))
    files = [path for path in found_files if path.suffix.lower() in suffixes]
    files = list(islice(cycle(files), options.count))
    loaded = load_run(open_run(Path(options.run)))
    backbone = str(loaded.description["backbone"])
    engine = picture_engine(
        loaded.classifier, loaded.maker, len(files), "onnx", torch.device("cpu")
    )
    size = loaded.maker.preprocessing
    shape = (options.batch_size, 3, size.height_px, size.width_px)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    cores = torch.get_num_threads()
    sample = files[:: max(1, len(files) // 200)]

    def decode() -> float:
        def work() -> None:
            for file in sample:
                loaded.maker.views(file, 0, (CLEAN,))

        return len(sample) / seconds_of(work)

    def bare() -> float:
        return 10 * len(images) / seconds_of(lambda: [engine.run(images) for _ in range(10)])

    sides: dict[str, Callable[[], float]] = {
        "decode and resize, one core": decode,
        "bare ONNX Runtime": bare,
        "embed": lambda: per_picture("embed", options.run, files),
        "predict": lambda: per_picture("predict", options.run, files),
        "predict --mc-dropout 30": lambda: per_picture(
            "predict", options.run, files, "--mc-dropout", "30"
        ),
        "eager timm in a plain loop": lambda: plain_loop(backbone, sample, options.batch_size),
    }
    engine.run(images)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, measure in sides.items():
            found[name].append(measure())
            progress = f"round {number + 1} of {options.rounds}: {name}"
            print(f"{progress}: {found[name][-1]:.1f} pictures/s", file=sys.stderr, flush=True)
    speeds = {name: statistics.median(values) for name, values in found.items()}
    by_decoding = cores * speeds["decode and resize, one core"]
    ideal = 1 / (1 / by_decoding + 1 / speeds["bare ONNX Runtime"])
    eager = speeds["eager timm in a plain loop"]
    print(f"{backbone} at {size.width_px} px, {len(files)} pictures, {cores} cores, ", end="")
    print(f"medians of {options.rounds}\n\n| what | pictures/s | of the ideal | of eager timm |")
    print("| --- | --- | --- | --- |")
    for name, speed in {**speeds, "ideal: decoding and ONNX on all cores": ideal}.items():
        print(f"| {name} | {speed:.1f} | {speed / ideal:.2f} | {speed / eager:.2f} |")


if __name__ == "__main__":
    main()
