"""The instant answer: whole commands of transferkit against what people write instead, in one run.

    python benchmarks/instant.py DATA... [--data-names NAME...] [--seeds 0 1 2] [--only a,b,c,d]
        [--out FILE.md] [--peer-python PYTHON] [--fastai-epochs 4] [--options=OPTIONS]

DATA has train/ and val/ with the same folders of classes, at least five pictures in each of train.
  a  eager timm features of transferkit's default backbone, in timm's own evaluation transform and
     with two loader processes; scikit-learn's StandardScaler and LogisticRegressionCV
  b  fastai's `fine_tune(--fastai-epochs)` of the same backbone with RandomResizedCrop(224), two
     loader processes; left out, and told, where --peer-python (see README.md) has no fastai
  c  `transferkit finetune DATA --stages solve`
  d  `transferkit finetune DATA`, the whole default plan
Each is a fresh process; seconds are those from its start to its exit, imports included. All have
the same weights on disk beforehand, and an empty cache. For every data set and seed they run one
after another; before that, all pictures are read once, so that nobody waits for the disk alone. The
seed shuffles the folds of (a), whose features have nothing random. OPTIONS: more options of both c
and d, e.g. --options="--crop auto".

Prints every result as it comes, then the table: the median over the seeds, least and most in
brackets; ratio and points are medians of what each has against (a) of the same seed. --out writes
the table with all results to FILE.md, and accuracy over seconds to FILE.png, after each data set.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BACKBONE = "tf_efficientnet_lite0"
OURS = ("-m", "transferkit", "finetune")
MEND = """
import torch  # the next lines: torchvision for CUDA beside a torch for CPUs alone
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
WEIGHTS = """
import sys
from transferkit.backbones.create import create_backbone
import torch
torch.save(create_backbone(sys.argv[2], pretrained=True).model.state_dict(), sys.argv[1])
"""
SCIKIT_LEARN = """
import json, sys
import numpy, timm, torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import ImageFolder
data, weights, backbone, seed = sys.argv[1:]
model = timm.create_model(backbone, num_classes=0, checkpoint_path=weights).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
@torch.inference_mode()
def features(split):
    pictures = ImageFolder(f"{data}/{split}", transform)
    loader = torch.utils.data.DataLoader(pictures, batch_size=64, num_workers=2)
    found = [(model(images), labels) for images, labels in loader]
    return [torch.cat(parts).numpy() for parts in zip(*found)]
folds = StratifiedKFold(5, shuffle=True, random_state=int(seed))
regression = LogisticRegressionCV(Cs=numpy.logspace(-4, 1, 6), cv=folds, max_iter=1000, n_jobs=-1)
classifier = make_pipeline(StandardScaler(), regression).fit(*features("train"))
print(json.dumps({"accuracy": classifier.score(*features("val"))}))
"""
FASTAI = """
import json, sys
from fastai.vision.all import *
data, weights, backbone, seed, epochs = sys.argv[1:]
set_seed(int(seed), reproducible=True)
half = [0.5] * 3
dls = ImageDataLoaders.from_folder(
    data, train="train", valid="val", item_tfms=RandomResizedCrop(224), bs=32, num_workers=2,
    batch_tfms=[*aug_transforms(), Normalize.from_stats(half, half)])
learn = vision_learner(dls, backbone, pretrained=False, normalize=False, metrics=accuracy)
found = learn.model[0].model.load_state_dict(torch.load(weights), strict=False)
assert not found.missing_keys and not found.unexpected_keys, found
learn.fine_tune(int(epochs))
print()
print(json.dumps({"accuracy": float(learn.validate()[1])}))
"""


@dataclass(frozen=True)
class Result:
    """What one command reached. side: its letter. accuracy: of val, 0 to 1."""

    data: str
    seed: int
    side: str
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Peers:
    """What the scripts of others need. mended: the python of each side -> what goes before it."""

    weights: Path
    python: str
    epochs: int
    mended: dict[str, str]


def classes_of(data: Path) -> list[str]:
    """Check that train and val have the same classes, and read every picture once."""
    folders = {
        split: sorted(folder.name for folder in (data / split).iterdir() if folder.is_dir())
        for split in ("train", "val")
    }
    if folders["train"] != folders["val"]:
        raise SystemExit(f"{data}: train and val must have the same folders of classes")
    for split in folders:
        for file in sorted((data / split).rglob("*")):
            if file.is_file():
                file.read_bytes()
    return folders["train"]


def runs(python: str, script: str) -> bool:
    """Return whether a script runs to its end."""
    done = subprocess.run([python, "-c", script], capture_output=True, check=False)
    return done.returncode == 0


def prepared(folder: Path, options: argparse.Namespace) -> tuple[Peers, list[str], list[str]]:
    """Write the weights; return what peers need, the sides to run, and what is left out."""
    weights = folder / "weights.pt"
    subprocess.run([sys.executable, "-c", WEIGHTS, str(weights), BACKBONE], check=True)
    mended, sides, left_out = {}, [], []
    for side in options.only.split(","):
        python = options.peer_python if side == "b" else sys.executable
        if side in "ab":
            needed = "import timm, sklearn" if side == "a" else "import timm, fastai.vision.all"
            fits = [before for before in ("", MEND) if runs(python, f"{before}\n{needed}")]
            if not fits:
                left_out.append(f"({side}) is left out: its Python does not run `{needed}`")
                continue
            mended[side] = fits[0]
        sides.append(side)
    for told in left_out:
        print(f"{told}; --peer-python names the one with fastai", file=sys.stderr, flush=True)
    return Peers(weights, options.peer_python, options.fastai_epochs, mended), sides, left_out


def command(side: str, data: Path, seed: int, peers: Peers, more: Sequence[str]) -> list[str]:
    """Return the command of a side, to be run in an empty folder."""
    if side in "cd":
        stages = ["--stages", "solve"] if side == "c" else []
        run = ["--out", "run", "--seed", str(seed), "--json"]
        return [sys.executable, *OURS, str(data), *stages, *run, *more]
    python, script = (sys.executable, SCIKIT_LEARN) if side == "a" else (peers.python, FASTAI)
    given = [str(data), str(peers.weights), BACKBONE, str(seed)]
    epochs = [] if side == "a" else [str(peers.epochs)]
    return [python, "-c", peers.mended[side] + script, *given, *epochs]


def measured(name: str, seed: int, side: str, arguments: Sequence[str]) -> Result:
    """Run a command that ends its output with a JSON line, from its start to its exit."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRANSFERKIT_CACHE": str(Path(folder, "cache"))}
        started = time.perf_counter()
        done = subprocess.run(
            arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{side} failed on {name}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    result = Result(name, seed, side, found.get("metrics", found)["accuracy"], seconds)
    told = f"{name}, seed {seed}, {side}: {result.accuracy:.3f} in {seconds:.1f} s"
    print(told, file=sys.stderr, flush=True)
    return result


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, with the least and the most where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def against(results: Sequence[Result], other: Sequence[Result], how: Callable) -> float | None:
    """Return the median over the seeds of a comparison with another side, None without it."""
    others = {result.seed: result for result in other}
    found = [how(result, others[result.seed]) for result in results if result.seed in others]
    return statistics.median(found) if found else None


def table(results: Sequence[Result], titles: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the table: a row for each data set and command."""
    yield "| data | command | accuracy | seconds | ratio to (a) | points above (a) |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in dict.fromkeys(result.data for result in results):
        of = {
            side: [result for result in results if (result.data, result.side) == (name, side)]
            for side in (*titles, "a")
        }
        for side, title in titles.items():
            if not of[side]:
                continue
            ratio = against(of[side], of["a"], lambda x, a: x.seconds / a.seconds)
            points = against(of[side], of["a"], lambda x, a: 100 * (x.accuracy - a.accuracy))
            cells = [name, f"({side}) {title}"]
            cells.append(spread([result.accuracy for result in of[side]], ".3f"))
            cells.append(spread([result.seconds for result in of[side]], ".1f"))
            cells.append("" if ratio is None else f"{ratio:.2f}")
            cells.append("" if points is None else f"{points:+.1f}")
            yield f"| {' | '.join(cells)} |"


def all_results(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of single results."""
    yield "| data | seed | command | accuracy | seconds |"
    yield "| --- | --- | --- | --- | --- |"
    for r in results:
        yield f"| {r.data} | {r.seed} | {r.side} | {r.accuracy:.4f} | {r.seconds:.2f} |"


def machine(peer_python: str, sides: Sequence[str]) -> str:
    """Return a line on the machine and the versions."""
    names = ["transferkit", "torch", "torchvision", "timm", "scikit-learn", "onnxruntime"]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    if "b" in sides:
        ask = "import importlib.metadata as m; print(m.version('fastai'), m.version('torch'))"
        found = subprocess.run([peer_python, "-c", ask], capture_output=True, text=True, check=True)
        versions.append("fastai {} with torch {}".format(*found.stdout.split()))
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    cpu = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    limits = [f"OMP_NUM_THREADS={threads}"] if threads else []
    load = f"{os.getloadavg()[0]:.1f} processes busy at the start"
    which = [f"{cores} cores", *cpu, *limits, load, f"Python {platform.python_version()}"]
    return ", ".join([*which, *versions])


def draw(results: Sequence[Result], titles: dict[str, str], path: Path) -> None:
    """Draw accuracy over seconds: each result small, the medians large, a plot per data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    names = list(dict.fromkeys(result.data for result in results))
    width = 1.5 + 3.5 * len(names)
    figure, plots = pyplot.subplots(
        1, len(names), figsize=(width, 4.5), layout="constrained", squeeze=False
    )
    for axes, name in zip(plots[0], names, strict=True):
        for number, (side, title) in enumerate(titles.items()):
            of = [result for result in results if (result.data, result.side) == (name, side)]
            if not of:
                continue
            seconds, reached = [r.seconds for r in of], [r.accuracy for r in of]
            axes.scatter(seconds, reached, s=12, alpha=0.5, color=f"C{number}")
            middle = statistics.median(seconds), statistics.median(reached)
            axes.scatter(*middle, s=80, color=f"C{number}", label=f"({side}) {title}")
        axes.set_title(name)
        axes.set_xscale("log")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.tick_params(axis="x", which="minor", labelsize=7)
        axes.set_xlabel("seconds of the whole command")
        axes.grid(alpha=0.3)
    plots[0][0].set_ylabel("validation accuracy")
    handles = plots[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parsed() -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--data-names", nargs="+", help="shown instead of the folders' names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="a,b,c,d", help="letters, e.g. a,c")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--fastai-epochs", type=int, default=4)
    parser.add_argument("--options", type=shlex.split, default=[])
    options = parser.parse_args()
    options.data = [data.resolve() for data in options.data]
    options.data_names = options.data_names or [data.name for data in options.data]
    if os.sep in options.peer_python:
        options.peer_python = os.path.abspath(options.peer_python)  # not what a link points to
    if len(options.data_names) != len(options.data):
        parser.error("--data-names needs as many names as there are folders")
    if not set(options.only.split(",")) <= set("abcd"):
        parser.error("--only takes letters of a, b, c, d with commas between them")
    return options


def main() -> None:
    """Run all commands, one after another, and write the table and the plot."""
    options = parsed()
    more = " ".join(("", *options.options))
    titles = {
        "a": "timm + scikit-learn",
        "b": f"fastai fine_tune({options.fastai_epochs})",
        "c": f"finetune --stages solve{more}",
        "d": f"finetune, the default plan{more}",
    }
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        peers, sides, left_out = prepared(Path(folder), options)
        title = machine(options.peer_python, sides)
        classes = [len(classes_of(data)) for data in options.data]
        of = [f"{name} ({n} classes)" for name, n in zip(options.data_names, classes, strict=True)]
        head = ["; ".join([BACKBONE, *of, title, *left_out]), ""]
        for name, data in zip(options.data_names, options.data, strict=True):
            for seed in options.seeds:
                for side in sides:
                    arguments = command(side, data, seed, peers, options.options)
                    results.append(measured(name, seed, side, arguments))
            lines = [*head, *table(results, titles)]
            if options.out is not None:
                whole = "\n".join([*lines, "", *all_results(results)])
                options.out.write_text(whole + "\n", encoding="utf-8")
                draw(results, titles, options.out.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
