"""Accuracy over wall time: transferkit, fastai's `fine_tune`, and plain timm training, in one run.

    python benchmarks/finetune_speed.py DATA --out FOLDER --peer-python /path/to/venv/bin/python
        [--epochs 2] [--seed 0]

DATA has train/ and val/ with a folder per class. The peer lives in a virtual environment of its
own (`pip install fastai timm`). All three start from the same weights of transferkit's default
backbone and see the same pictures at the same size. fastai: `fine_tune(epochs)`, one frozen epoch
before, its usual augmentation. timm: the head alone for `epochs`, then everything for `epochs` at a
tenth of the rate. Time counts from the start of each process. Writes FOLDER/finetune_speed.md and
FOLDER/finetune_speed.png.
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

BACKBONE = "tf_efficientnet_lite0"
FASTAI = """
import sys, time, json
started = float(sys.argv[6])
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
import transferkit.torchvision_ops
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


def peer_rows(python: str, script: str, options: argparse.Namespace, weights: Path) -> tuple:
    """Run a peer; return its rows and versions."""
    numbers = [BACKBONE, str(options.epochs), str(options.seed), str(time.time())]
    command = [python, "-c", script, options.data, str(weights), *numbers]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = done.stdout.splitlines()
    rows = [tuple(json.loads(line[4:])) for line in lines if line.startswith("ROW ")]
    versions = next(line[9:] for line in lines if line.startswith("VERSIONS "))
    return rows, versions


def our_rows(options: argparse.Namespace, out: Path, cache: Path) -> tuple[Rows, float, float]:
    """Run finetune; return its rows, as they appear, its whole time and its final accuracy."""
    command = [sys.executable, "-m", "transferkit", "finetune", options.data, "--out", str(out)]
    command += ["--seed", str(options.seed), "--cache-dir", str(cache), "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    rows: Rows = []
    metrics = out / "metrics.csv"
    while process.poll() is None:
        time.sleep(0.1)
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for line in lines[1 + len(rows) :]:
            values = dict(zip(lines[0].split(","), line.split(","), strict=True))
            rows.append((time.perf_counter() - started, float(values["val_accuracy"])))
    assert process.stdout is not None
    result = json.loads(process.stdout.read())
    return rows, time.perf_counter() - started, float(result["metrics"]["accuracy"])


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

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in curves.items():
        axes.plot(*zip(*rows, strict=True), marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds since the start of the process")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all three, one after another, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pt")
        export_weights(weights)
        ours, whole_s, final = our_rows(options, Path(folder, "run"), Path(folder, "cache"))
        fastai, theirs = peer_rows(options.peer_python, FASTAI, options, weights)
        timm, plain = peer_rows(sys.executable, TIMM, options, weights)
    best = max(accuracy for _, accuracy in fastai)
    best_s = next(seconds for seconds, accuracy in fastai if accuracy == best)
    reached_s = next((seconds for seconds, accuracy in ours if accuracy >= best), float("nan"))
    version = importlib.metadata.version("transferkit")
    lines = [
        f"{BACKBONE}, {options.data}, {os.cpu_count()} cores, seed {options.seed}; "
        f"transferkit {version}; fastai: {theirs}; plain timm: {plain}",
        "",
        "| what | seconds | best validation accuracy |",
        "| --- | --- | --- |",
        f"| transferkit finetune, whole command | {whole_s:.0f} | {final:.3f} |",
        f"| transferkit, until fastai's best is reached | {reached_s:.0f} | {best:.3f} |",
        f"| fastai fine_tune({options.epochs}) | {best_s:.0f} | {best:.3f} |",
        f"| plain timm, frozen then not | {timm[-1][0]:.0f} | {max(a for _, a in timm):.3f} |",
        "",
        f"fastai's best is reached in 1/{best_s / reached_s:.1f} of its time.",
    ]
    (out / "finetune_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw({"transferkit": ours, "fastai": fastai, "plain timm": timm}, out / "finetune_speed.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
