"""What pretraining without labels is worth: fine-tuning after each method against from scratch.

    python benchmarks/pretraining.py UNLABELED LABELED --out FOLDER
        [--methods simclr,rotation] [--budget 20m] [--seeds 0,1,2] [--jobs 2]

Every method gets the same time (`transferkit pretrain --budget`), then the same fine-tuning;
"scratch" is that fine-tuning alone, from random weights: as many epochs of all layers, at the same
rates. A method runs once; its fine-tuning runs with every seed. `--jobs 2` runs two methods at a
time with one thread each. Every run is kept in FOLDER, and what is finished there is not run again,
so an interrupted benchmark goes on with the same command. Writes FOLDER/table.md and
FOLDER/accuracy.png: mean, lowest and highest validation accuracy over the seeds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

CNN = ("--backbone", "cnn", "--backbone-batchnorm", "before", "--backbone-width", "16")
PLAIN = ("--backbone", "cnn", "--backbone-width", "16")
MLP = ("--backbone", "mlp", "--backbone-depth", "5", "--activation", "logistic")
SCRATCH = {"scratch": CNN, "scratch-plain": PLAIN, "scratch-mlp": MLP}
"""Random start, and its network."""
VIEWS = ("--batch-size", "128", "--lr", "5e-3")
METHODS: dict[str, tuple[str, ...]] = {
    "simclr": ("--method", "simclr", *VIEWS, "--temperature", "0.2"),
    "barlow": ("--method", "barlow", *VIEWS),
    "byol": ("--method", "byol", *VIEWS),
    "vicreg": ("--method", "vicreg", *VIEWS),
    "simsiam": ("--method", "simsiam", *VIEWS),
    "dino": ("--method", "dino", *VIEWS),
    "rotation": ("--method", "rotation", *VIEWS),
    "jigsaw": ("--method", "jigsaw", *VIEWS),
    "colorization": ("--method", "colorization", "--lr", "5e-3"),
    "inpainting": ("--method", "inpainting", "--lr", "5e-3"),
    "autoencoder": ("--method", "autoencoder", "--lr", "5e-3"),
    "denoising": ("--method", "autoencoder", "--variant", "denoising", "--lr", "5e-3"),
    "sparse": ("--method", "autoencoder", "--variant", "sparse", "--lr", "5e-3"),
    "variational": ("--method", "autoencoder", "--variant", "variational", "--lr", "5e-3"),
    "gan": ("--method", "gan"),
    "same-or-different": ("--method", "same-or-different", *VIEWS),
    "rbm": ("--method", "rbm"),
    "stacked": ("--method", "autoencoder", "--variant", "stacked", "--lr", "1e-3"),
}
"""Name in the table -> options of `transferkit pretrain`."""
START = {"rbm": "scratch-mlp", "stacked": "scratch-mlp", "gan": "scratch-plain"}
"""Of methods that do not learn on the network of "scratch"; a discriminator has no batch norm."""
TUNING = ("--augment", "light", "--patience", "1000", "--block-decay", "1")
"""Of every fine-tuning; all layers learn at one rate, as from scratch."""


def transferkit(*arguments: object) -> dict:
    """Run a command of transferkit and return what it prints as JSON."""
    command = [sys.executable, "-m", "transferkit", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode(errors="replace")[-2000:])
    found: dict = json.loads(done.stdout)
    return found


def once(folder: Path, *arguments: object) -> dict:
    """Run a command into a run folder, or read its result where it was finished before."""
    kept = folder.with_suffix(".json")
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        result = transferkit(*arguments, "--out", folder)
        kept.write_text(json.dumps(result), encoding="utf-8")
    found: dict = json.loads(kept.read_text(encoding="utf-8"))
    return found


def measured(name: str, options: argparse.Namespace) -> dict:
    """Pretrain, fine-tune with every seed; return the epochs and the accuracies in percent."""
    folder = Path(options.out)
    size = ("--image-size", options.image_size)
    network = SCRATCH[START.get(name, "scratch")]
    epochs = 0
    if name in SCRATCH:
        stages = f"all:{options.head_epochs + options.epochs}@{options.lr}"
        start: tuple[object, ...] = (*SCRATCH[name], "--no-pretrained")
    else:
        stages = f"head:{options.head_epochs},all:{options.epochs}@{options.lr}"
        run = folder / f"{name}-pretrained"
        arguments = (*METHODS[name], *network, *size, "--budget", options.budget)
        epochs = once(run, "pretrain", options.unlabeled, *arguments)["epochs"]
        start = ("--from", run)
    found = []
    for seed in map(int, options.seeds.split(",")):
        tuning = ("--stages", stages, *TUNING, "--seed", seed)
        run = folder / f"{name}-tuned-{seed}"
        tuned = once(run, "finetune", options.labeled, *start, *tuning, *size)
        found.append(100 * float(tuned["metrics"]["accuracy"]))
    return {"name": name, "epochs": epochs, "accuracies": found}


def write_table(rows: list[dict], options: argparse.Namespace) -> None:
    """Write and print the Markdown table of what is known so far."""
    means = {row["name"]: statistics.mean(row["accuracies"]) for row in rows}
    plan = f"head:{options.head_epochs},all:{options.epochs}@{options.lr}"
    lines = [
        f"{options.image_size} px, {options.budget} of pretraining on {options.threads} "
        f"thread(s), then `--stages {plan}`, seeds {options.seeds}:",
        "",
        "| method | epochs | accuracy, mean (lowest to highest) | against from scratch |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high, mean = min(row["accuracies"]), max(row["accuracies"]), means[row["name"]]
        scratch = means.get(START.get(row["name"], "scratch"), mean)
        spread = f"{mean:.1f} % ({low:.1f} to {high:.1f})"
        against = "" if row["name"] in SCRATCH else f"{mean - scratch:+.1f} points"
        lines.append(f"| {row['name']} | {row['epochs'] or ''} | {spread} | {against} |")
    text = "\n".join(lines) + "\n"
    Path(options.out, "table.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def draw(rows: list[dict], path: Path) -> None:
    """Draw a bar for each method, and a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.35 * len(rows)), layout="constrained")
    for position, row in enumerate(rows):
        values = row["accuracies"]
        axes.barh(position, statistics.mean(values), color="tab:blue", alpha=0.4)
        axes.plot(values, [position] * len(values), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("validation accuracy after fine-tuning, %")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is not there yet and write the table after each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unlabeled")
    parser.add_argument("labeled")
    parser.add_argument("--out", required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--head-epochs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", default="3e-3")
    options = parser.parse_args()
    options.threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    names = [*SCRATCH, *options.methods.split(",")]
    rows: dict[str, dict] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(measured, name, options) for name in names]):
            rows[done.result()["name"]] = done.result()
            known = [rows[name] for name in names if name in rows]
            write_table(known, options)
            draw(known, Path(options.out, "accuracy.png"))


if __name__ == "__main__":
    main()
