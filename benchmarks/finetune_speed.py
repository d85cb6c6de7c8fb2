"""Accuracy over wall time: transferkit, fastai's `fine_tune`, and plain timm training, in one run.

    python benchmarks/finetune_speed.py DATA --out FOLDER --peer-python /path/to/venv/bin/python
        [--epochs 2] [--stages "head:30, 1:12"] [--plain-epochs 1] [--seed 0] [--pictures N]
        [--sides transferkit fastai timm]

DATA has train/ and val/ with a folder per class; --pictures takes the first N of each of them, 8 at
least. The peer lives in the environment of --peer-python, see README.md. All three start from the
same weights of transferkit's default backbone and see the same pictures at the same size. fastai:
`fine_tune(epochs)`, one frozen epoch before, its usual augmentation. timm: the head alone for
--plain-epochs, then everything for as many at a tenth of the rate. transferkit: --stages, "default"
for its default plan. Time counts from the start of each process. Prints every epoch as it ends, and
writes FOLDER/finetune_speed.md and FOLDER/finetune_speed.png.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cache_effect import subset

BACKBONE = "tf_efficientnet_lite0"
FASTAI = """
import sys, time, json, contextlib
started = float(sys.argv[6])
with contextlib.suppress(ImportError):
    import transferkit.timm_import  # mends torchvision beside a torch for CPUs alone
import torch, timm, fastai
from fastai.vision.all import *
data, weights, backbone, epochs, seed = sys.argv[1:6]
set_seed(int(seed), reproducible=True)
half = [0.5] * 3
dls = ImageDataLoaders.from_folder(
    data, train="train", valid="val", item_tfms=Resize(460), bs=32, num_workers=0,
    batch_tfms=[*aug_transforms(size=224), Normalize.from_stats(half, half)])
learn = vision_learner(dls, backbone, pretrained=False, normalize=False, metrics=accuracy)
found = learn.model[0].model.load_state_dict(torch.load(weights), strict=False)
assert not found.missing_keys and not found.unexpected_keys, found
class Tell(Callback):
    order = 90
    def after_epoch(self):
        row = [time.time() - started, float(self.recorder.values[-1][-1])]
        print("ROW", json.dumps(row), flush=True)
learn.add_cb(Tell())
learn.fine_tune(int(epochs))
print("VERSIONS", json.dumps({"fastai": fastai.__version__, "torch": torch.__version__}))
"""
TIMM = """
import sys, time, json
started = float(sys.argv[6])
import transferkit.timm_import
import torch, timm
from torchvision.datasets import ImageFolder
data, weights, backbone, epochs, seed = sys.argv[1:6]
torch.manual_seed(int(seed))
sets = {}
model = timm.create_model(backbone, pretrained=False)
found = model.load_state_dict(torch.load(weights), strict=False)
assert set(found.missing_keys) == {"classifier.weight", "classifier.bias"}, found
config = timm.data.resolve_model_data_config(model)
for split in ("train", "val"):
    change = timm.data.create_transform(**config, is_training=split == "train")
    sets[split] = torch.utils.data.DataLoader(
        ImageFolder(f"{data}/{split}", change), 32, shuffle=split == "train")
model.reset_classifier(len(sets["train"].dataset.classes))
def run(parameters, rate):
    optimizer = torch.optim.AdamW(parameters, rate)
    for _ in range(int(epochs)):
        model.train()
        for images, labels in sets["train"]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            right = [(model(x).argmax(1) == y).float().mean() * len(y) for x, y in sets["val"]]
        accuracy = float(sum(right)) / len(sets["val"].dataset)
        print("ROW", json.dumps([time.time() - started, accuracy]), flush=True)
for parameter in model.parameters():
    parameter.requires_grad_(False)
head = list(model.get_classifier().parameters())
for parameter in head:
    parameter.requires_grad_(True)
run(head, 3e-3)
for parameter in model.parameters():
    parameter.requires_grad_(True)
run(model.parameters(), 3e-4)
print("VERSIONS", json.dumps({"timm": timm.__version__, "torch": torch.__version__}))
"""
Rows = list[tuple[float, float]]
"""(seconds since the start, validation accuracy) after each epoch."""


def told(side: str, rows: Rows) -> None:
    """Print the last of the rows of a side."""
    print(f"{side}: {rows[-1][1]:.3f} after {rows[-1][0]:.0f} s", file=sys.stderr, flush=True)


def peer_rows(side: str, command: list[str], arguments: list[str]) -> tuple[Rows, str]:
    """Run a peer, a Python program that prints ROW and VERSIONS; return its rows and versions."""
    rows: Rows = []
    versions = ""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, *arguments, str(time.time())],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ROW "):
                seconds, accuracy = json.loads(line[4:])
                rows.append((seconds, accuracy))
                told(side, rows)
            elif line.startswith("VERSIONS "):
                versions = line[9:].strip()
        if process.wait():
            errors.seek(0)
            raise SystemExit(errors.read()[-3000:])
    return rows, versions


def our_rows(options: argparse.Namespace, out: Path, cache: Path) -> tuple[Rows, float, float]:
    """Run finetune; return its rows, as they appear, its whole time and its final accuracy."""
    command = [sys.executable, "-m", "transferkit", "finetune", options.data, "--out", str(out)]
    command += ["--seed", str(options.seed), "--cache-dir", str(cache), "--json"]
    if options.stages != "default":
        command += ["--stages", options.stages]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    rows: Rows = []
    metrics = out / "metrics.csv"
    running = True
    while running:
        time.sleep(0.1)
        running = process.poll() is None  # rows may appear up to the end
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for line in lines[1 + len(rows) :]:
            values = dict(zip(lines[0].split(","), line.split(","), strict=True))
            rows.append((time.perf_counter() - started, float(values["val_accuracy"])))
            told("transferkit", rows)
    whole_s = time.perf_counter() - started
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    result = json.loads(process.stdout.read())
    return rows, whole_s, float(result["metrics"]["accuracy"])


def export_weights(path: Path) -> None:
    """Write the default backbone's pretrained weights as a plain state dict."""
    import torch

    from transferkit.backbones.create import create_backbone

    torch.save(create_backbone(BACKBONE, pretrained=True).model.state_dict(), path)


def draw(curves: dict[str, Rows], path: Path) -> None:
    """Draw accuracy over time, the time on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in curves.items():
        axes.plot(*zip(*rows, strict=True), marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlabel("seconds since the start of the process")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def table(curves: dict[str, Rows], whole: tuple[float, float]) -> list[str]:
    """Return the lines of the table. whole: seconds and accuracy of our command."""
    lines = ["| what | seconds | best validation accuracy |", "| --- | --- | --- |"]
    if "transferkit" in curves:
        lines.append(f"| transferkit finetune, whole command | {whole[0]:.0f} | {whole[1]:.3f} |")
    for name, rows in curves.items():
        best = max(accuracy for _, accuracy in rows)
        best_s = next(seconds for seconds, accuracy in rows if accuracy == best)
        lines.append(f"| {name}, until its best | {best_s:.0f} | {best:.3f} |")
        if name == "transferkit" or "transferkit" not in curves:
            continue
        reached = [seconds for seconds, accuracy in curves["transferkit"] if accuracy >= best]
        if reached:
            share = f"1/{best_s / reached[0]:.1f} of its time"
            lines.append(f"| transferkit, until that is reached: {share} | {reached[0]:.0f} | |")
        else:
            lines.append("| transferkit never reaches that | | |")
    return lines


def main() -> None:
    """Run the sides, one after another, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--stages", default="head:30, 1:12")
    parser.add_argument("--plain-epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--sides", nargs="+", default=["transferkit", "fastai", "timm"])
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    shown = options.data
    curves: dict[str, Rows] = {}
    versions = {"transferkit": importlib.metadata.version("transferkit")}
    whole = (0.0, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        if options.pictures:
            options.data = str(subset(Path(shown), Path(folder, "data"), options.pictures))
        weights = Path(folder, "weights.pt")
        export_weights(weights)
        if "transferkit" in options.sides:
            rows, *both = our_rows(options, Path(folder, "run"), Path(folder, "cache"))
            curves["transferkit"], whole = rows, (both[0], both[1])
        peers = {
            "fastai": (options.peer_python, FASTAI, options.epochs),
            "timm": (sys.executable, TIMM, options.plain_epochs),
        }
        for side, (python, script, epochs) in peers.items():
            if side in options.sides:
                given = [options.data, str(weights), BACKBONE, str(epochs), str(options.seed)]
                curves[side], versions[side] = peer_rows(side, [python, "-c", script], given)
    found = ", ".join(f"{side}: {version}" for side, version in versions.items())
    each = {
        "transferkit": options.stages,
        "fastai": f"fine_tune({options.epochs})",
        "timm": f"timm {options.plain_epochs} + as many",
    }
    plans = "; ".join(plan for side, plan in each.items() if side in curves)
    title = f"{BACKBONE}, {shown}, {os.cpu_count()} cores, seed {options.seed}; {found}; {plans}"
    lines = [title, "", *table(curves, whole)]
    (out / "finetune_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(curves, out / "finetune_speed.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
