"""What pretraining without labels is worth: fine-tuning after each method against from scratch.

    python benchmarks/pretraining.py UNLABELED LABELED --out FOLDER
        [--methods simclr,rotation] [--budget 20m] [--seeds 0,1,2] [--backbone resnet18]

Every method gets the same time (`transferkit pretrain --budget`), then the same fine-tuning of all
layers; "scratch" is that fine-tuning alone. Every run is kept in FOLDER, and what is finished there
is not run again, so an interrupted benchmark goes on with the same command. Writes FOLDER/table.md
and FOLDER/accuracy.png: mean, lowest and highest validation accuracy over the seeds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

SCRATCH = "scratch"


def transferkit(*arguments: object) -> dict:
    """Run a command of transferkit and return what it prints as JSON."""
    command = [sys.executable, "-m", "transferkit", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
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


def measured(method: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Pretrain, fine-tune, and return the validation accuracy and the epochs pretrained."""
    folder = Path(options.out)
    size = ("--image-size", options.image_size)
    tuning = ("--stages", options.stages, "--seed", seed, *size)
    found = {"epochs": 0.0}
    if method == SCRATCH:
        start: tuple[object, ...] = ("--backbone", options.backbone, "--no-pretrained")
    else:
        run = folder / f"{method}-{seed}-pretrained"
        arguments = ("--method", method, "--backbone", options.backbone, *size)
        budget = ("--budget", options.budget, "--seed", seed)
        result = once(run, "pretrain", options.unlabeled, *arguments, *budget)
        found["epochs"] = float(result["epochs"])
        start = ("--from", run)
    tuned = once(folder / f"{method}-{seed}-tuned", "finetune", options.labeled, *start, *tuning)
    return found | {"accuracy": 100 * float(tuned["metrics"]["accuracy"])}


def write_table(rows: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Write and print the Markdown table of what is known so far."""
    scratch = statistics.mean(row["accuracy"] for row in rows[SCRATCH])
    lines = [
        f"{options.backbone} at {options.image_size} px, {options.budget} of pretraining, "
        f"then `--stages {options.stages}`, seeds {options.seeds}:",
        "",
        "| method | epochs | accuracy, mean (lowest to highest) | against from scratch |",
        "| --- | --- | --- | --- |",
    ]
    for method, found in rows.items():
        values = [row["accuracy"] for row in found]
        mean = statistics.mean(values)
        epochs = statistics.mean(row["epochs"] for row in found)
        spread = f"{mean:.1f} % ({min(values):.1f} to {max(values):.1f})"
        lines.append(f"| {method} | {epochs:.0f} | {spread} | {mean - scratch:+.1f} points |")
    text = "\n".join(lines) + "\n"
    Path(options.out, "table.md").write_text(text, encoding="utf-8")
    print(text)


def draw(rows: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw a bar for each method, and a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.4 * len(rows)), layout="constrained")
    for position, found in enumerate(rows.values()):
        values = [row["accuracy"] for row in found]
        axes.barh(position, statistics.mean(values), color="tab:blue", alpha=0.4)
        axes.plot(values, [position] * len(values), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("validation accuracy after fine-tuning, %")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is not there yet, seed by seed, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unlabeled")
    parser.add_argument("labeled")
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--methods", default="autoencoder,simclr,barlow,vicreg,byol,rotation,jigsaw"
    )
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--stages", default="all:30@1e-3")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in map(int, options.seeds.split(",")):
        for method in (SCRATCH, *options.methods.split(",")):
            rows.setdefault(method, []).append(measured(method, seed, options))
            write_table(rows, options)
            draw(rows, Path(options.out, "accuracy.png"))


if __name__ == "__main__":
    main()
