"""What bursts do to a score: each photograph several times, altered, split at random or by groups.

    python benchmarks/bursts.py DATA [--copies 5] [--most 24] [--seeds 0 1 2] [--output bursts.md]
        [OPTIONS]

DATA has train/ and val/ with a folder per class. Every picture of train/, or the first `--most` of
each class, is altered several times:
another crop of 75 to 100 % of its sides, mirrored or not, turned by up to 5 degrees, other
brightness and colour. `finetune --stages solve` draws its validation from these at random, by the
name of the photograph, and by likeness; the truth is the same model's accuracy on val/, of which it
has seen nothing. OPTIONS are further options of finetune.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from PIL import Image, ImageEnhance, ImageOps

WAYS = {
    "at random": (),
    "by name": ("--group-by", r"^(.+)_\d+\."),
    "similar": ("--group-by", "similar"),
}


def altered(image: Image.Image, generator: random.Random) -> Image.Image:
    """Return the picture as another one of the same burst might look."""
    share = generator.uniform(0.75, 1.0)
    width, height = (round(side * share) for side in image.size)
    left, top = (
        generator.randint(0, whole - part)
        for whole, part in zip(image.size, (width, height), strict=True)
    )
    view = image.crop((left, top, left + width, top + height))
    if generator.random() < 0.5:
        view = ImageOps.mirror(view)
    for kind in (ImageEnhance.Brightness, ImageEnhance.Color):
        view = kind(view).enhance(generator.uniform(0.75, 1.25))
    return view.rotate(generator.uniform(-5, 5), Image.Resampling.BICUBIC)


def make_bursts(source: Path, target: Path, copies: int, most: int | None) -> None:
    """Write every picture of the class folders below `source` so many times, altered."""
    generator = random.Random(0)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True)
        for number, file in enumerate(sorted(folder.iterdir())[:most]):
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
            for copy in range(copies):
                name = f"{folder.name}{number:04d}_{copy}.jpg"
                altered(image, generator).save(target / folder.name / name, quality=90)


def said(*command: str) -> dict[str, object]:
    """Run a command of transferkit and return its JSON."""
    arguments = [sys.executable, "-m", "transferkit", *command, "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines[-1]


def measure(
    data: Path, bursts: Path, seed: int, way: str, more: Sequence[str]
) -> tuple[float, ...]:
    """Return accuracy on the drawn validation, by leave-one-out, and on what is really new."""
    with tempfile.TemporaryDirectory() as work:
        run = str(Path(work) / "run")
        options = ("--stages", "solve", "--seed", str(seed), *WAYS[way], *more)
        said("finetune", str(bursts), "--out", run, *options)
        summary = json.loads((Path(run) / "summary.json").read_text())
        truth = said("evaluate", run, str(data / "val"))
        return (
            summary["metrics"]["accuracy"],
            summary["leave_one_out"]["accuracy"],
            truth["accuracy"],
        )  # type: ignore[return-value]


def main() -> None:
    """Measure every way to split with every seed; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--most", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path)
    options, more = parser.parse_known_args()
    lines = [
        "| split | validation | leave-one-out | truth | validation over truth |",
        "|" + " --- |" * 5,
    ]
    with tempfile.TemporaryDirectory() as work:
        bursts = Path(work) / "bursts"
        make_bursts(options.data / "train", bursts, options.copies, options.most)
        for way in WAYS:
            rows = [measure(options.data, bursts, seed, way, more) for seed in options.seeds]
            cells = [f"{100 * mean(column):.1f} %" for column in zip(*rows, strict=True)]
            gaps = [100 * (row[0] - row[2]) for row in rows]
            shown = f"{mean(gaps):+.1f} points ({min(gaps):+.1f} to {max(gaps):+.1f})"
            lines.append(f"| {way} | {' | '.join(cells)} | {shown} |")
            print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
