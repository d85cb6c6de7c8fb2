"""What one picture costs in each part of the work, on one core; docs/scaling.md reckons with it.

    python benchmarks/picture_costs.py DATA [--pictures 64] [--repeats 3] [--stages "head:1, 1:1"]

DATA is what `finetune` takes: a folder, or shards. Everything runs on one thread. Counted is the
processor time of this process, the least of some repeats, so that other work on the machine hardly
matters; files are in the system's cache, so that the disk does not either.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from transferkit.backbones.engine import choose_engine, make_engine
from transferkit.backbones.head import FrozenTrunk
from transferkit.data.decode import decode, probe
from transferkit.data.tar_members import archive_of, read_member
from transferkit.data.views import clean_view, shorter_side_px, varied_view
from transferkit.finetuning.preparation import prepare
from transferkit.finetuning.speed import random_images
from transferkit.recipes.reading import validate
from transferkit.recipes.typed import parse_stages
from transferkit.training.boundary_cache import BoundaryCache
from transferkit.training.parts import Parts
from transferkit.training.sources import trainable_top
from transferkit.training.stages import PlannedStage, apply_stage

BATCH = 64


def cost(work: Callable[[], object], units: int, repeats: int) -> float:
    """Return the processor time per unit in milliseconds, the least of some repeats."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return 1000 * min(found) / units


def content(file: Path) -> bytes:
    """Read a picture's file, also one in a shard."""
    return file.read_bytes() if archive_of(file) is None else read_member(file)


def from_files(parts: Parts, files: list[Path], repeats: int) -> dict[str, float]:
    """Measure what is done with files, by part."""
    maker = parts.material.maker
    size = maker.preprocessing
    clean_px, varied_px = (shorter_side_px(size, level) for level in ("none", maker.level))
    images = [decode(file, at_least_px=varied_px) for file in files]
    generator = np.random.default_rng(0)

    def varied() -> None:
        for image in images:
            varied_view(image, size, maker.level, maker.flip, generator)

    count = len(files)
    return {
        "read": cost(lambda: [content(file) for file in files], count, repeats),
        "scan": cost(lambda: [probe(file) for file in files], count, repeats),
        "decode": cost(lambda: [decode(f, at_least_px=clean_px) for f in files], count, repeats),
        "clean view": cost(lambda: [clean_view(i, size) for i in images], count, repeats),
        "varied view": cost(varied, count, repeats),
    }


def stage_costs(parts: Parts, stage: PlannedStage, repeats: int) -> tuple[int, list[float]]:
    """Return bytes of a row, and ms per row of trunk, cache write, cache read, training step."""
    images = random_images(parts, BATCH)
    trunk = FrozenTrunk(parts.classifier, parts.chain.trunk(stage.boundary)).eval()
    name = choose_engine(parts.settings.engine, parts.device, 10_000)
    engine = make_engine(trunk, images, name, parts.device)
    rows = engine.run(images)
    apply_stage(parts.classifier, parts.column_of, stage)
    network: nn.Module = trainable_top(parts, stage)
    labels = torch.arange(BATCH) % len(parts.index.classes)

    def step() -> None:
        nn.functional.cross_entropy(network(rows), labels).backward()
        parts.classifier.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory() as folder:
        batches = 2 + repeats
        shape, order = tuple(rows.shape[1:]), np.random.default_rng(0).permutation(BATCH)
        with BoundaryCache(Path(folder), batches * BATCH, shape, "float16") as cache:
            written = [cost(lambda: cache.append(rows), BATCH, repeats)]
            written.append(cost(lambda: cache.read(order), BATCH, repeats))
            row_bytes = cache.row_bytes
    run = cost(lambda: engine.run(images), BATCH, repeats)
    return row_bytes, [run, *written, cost(step, BATCH, repeats)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", default="head:1, 1:1, 2:1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = validate({"data": {"path": options.data}, "stages": parse_stages(options.stages)})
    config = replace(config, device=replace(config.device, accelerator="cpu"))
    parts = prepare(config, lambda event: None)
    chosen = np.random.default_rng(0).permutation(len(parts.index))[: options.pictures]
    files = [parts.index.file(int(position)) for position in chosen]
    size = np.mean([len(content(file)) for file in files])
    pixels = parts.index.sizes[chosen].prod(axis=1).mean()
    print(f"{len(files)} of {len(parts.index):,} pictures, on average:")
    print(f"{size / 1000:.1f} KB, {pixels:,.0f} pixels")
    print(f"{parts.backbone.name}, torch {torch.__version__}, 1 of {os.cpu_count()} cores\n")
    for name, value in from_files(parts, files, options.repeats).items():
        print(f"{name:<12}{value:>8.2f} ms")
    print(f"\n{'stage':<8}{'row':>12}{'trunk':>10}{'write':>10}{'read':>10}{'step':>10}")
    for stage in parts.plan.stages:
        row_bytes, found = stage_costs(parts, stage, options.repeats)
        print(
            f"{stage.name:<8}{row_bytes:>10,} B" + "".join(f"{value:>7.2f} ms" for value in found)
        )


if __name__ == "__main__":
    main()
