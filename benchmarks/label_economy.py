"""How many labels it takes: accuracy over labels, by what picks the pictures and what learns.

    python benchmarks/label_economy.py DATA... [--labels 10 25 50 100] [--seeds 0 1 2 3 4]
        [--finetune-seeds 0] [--out FILE.md]

DATA has train/ and val/. The features of all pictures are read once, as `--stages solve` reads
them. All ways of picking begin with the same labels, the fewest per class, drawn at random; then
each picks in rounds, of 40 % more labels each, until there are as many in all as the next number
per class asks for. Classes that have fewer pictures give all of them to "random per class"; the
other ways are free to pick from any class, "random" among them.
  entropy, bald, diverse, solve: as `predict --select --by`, on the solve of the labels so far; bald
  has 20 dropout masks over its features, at a rate of 0.2
What learns: `solve`; `head`, a logistic regression on the backbone's output features, as training
the head alone does; with --finetune-seeds `plain`, whole commands of `finetune` on what "random per
class" picked: the default plan without its solves, some minutes each.

Prints every result as it comes, then the table: the mean over the seeds ± their standard deviation,
in percent; and the fewest labels per class with which each way, interpolated, reaches what the
plain or, without it, the head on random labels reaches with the most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import transferkit.timm_import  # noqa: F401
from transferkit.closed_form.judge import fit_temperature
from transferkit.closed_form.label_gain import LabelGain
from transferkit.closed_form.left_out import Problem, Solution, left_out_scores, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config, Data
from transferkit.events import silent
from transferkit.finetuning.evidence import Evidence
from transferkit.finetuning.pictures import read_evidence
from transferkit.inference.select import POOL_PER_PICK, farthest_first, score_by
from transferkit.inference.uncertainty import Uncertainty, uncertainty_of

WAYS = ("random per class", "random", "entropy", "bald", "diverse", "solve")
PLAIN = "head:30, 1:12, 2:12"
GROWTH = 1.4
MASKS, RATE = 20, 0.2
Results = dict[tuple[str, str, str, int], list[float]]  # data, learner, way, labels per class


@dataclass(frozen=True)
class Bench:
    """Rows of the training pictures (the pool), and of validation."""

    evidence: Evidence
    pool: np.ndarray
    held: np.ndarray

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.evidence.index.classes)

    def problem(self, rows: np.ndarray) -> Problem:
        """Return the regression of these pictures' labels."""
        labels = self.evidence.labels[rows]
        return Problem(self.evidence.features[rows], one_hot(labels, self.classes))

    def solved(self, rows: np.ndarray) -> tuple[Solution, float]:
        """Solve on labelled pictures; return the solution and its temperature."""
        problem = self.problem(rows)
        solution = solve(problem, self.evidence.widths)
        scores = left_out_scores(solution.spectrum, problem, solution.penalty)
        return solution, fit_temperature(scores, self.evidence.labels[rows])

    def accuracies(self, rows: np.ndarray) -> dict[str, float]:
        """Return the accuracy on validation of what learns from labelled pictures."""
        features, labels = self.evidence.features, self.evidence.labels.numpy()
        solution, _ = self.solved(rows)
        found = solution.spectrum.predict(features[self.held], solution.penalty).argmax(1).numpy()
        last = features[:, -self.evidence.widths[-1] :].numpy()
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.1))
        head.fit(last[rows], labels[rows])
        return {
            "solve": float((found == labels[self.held]).mean()),
            "head": float(head.score(last[self.held], labels[self.held])),
        }


def sampled(bench: Bench, solution: Solution, rows: np.ndarray, temperature: float) -> Uncertainty:
    """Return the uncertainty of pictures under dropout masks over the features."""
    weight, bias = solution.spectrum.linear(solution.penalty)
    generator = torch.Generator().manual_seed(0)
    features = bench.evidence.features[rows]
    logits = []
    for _ in range(MASKS):
        mask = (torch.rand(features.shape, generator=generator) >= RATE) / (1 - RATE)
        logits.append((features * mask).double() @ weight.T + bias)
    return uncertainty_of((torch.stack(logits, 1) / temperature).softmax(2).numpy())


def picked(bench: Bench, way: str, labelled: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return so many pictures of the pool to label next."""
    rng = np.random.default_rng([seed, len(labelled)])
    rows = np.setdiff1d(bench.pool, labelled)
    if way == "random" or count >= len(rows):
        return rng.permutation(rows)[:count]
    vectors = bench.evidence.features
    if way == "diverse":
        order = farthest_first(vectors[rows].numpy(), count, vectors[labelled].numpy())
        return rows[order]
    solution, temperature = bench.solved(labelled)
    scores = solution.spectrum.predict(vectors[rows], solution.penalty)
    chances = (scores / temperature).softmax(1)
    if way == "solve":
        problem = bench.problem(labelled)
        gain = LabelGain(problem.features, problem.targets, bench.evidence.widths)
        worth = gain.surprise(vectors[rows], chances) * gain.change(vectors[rows], vectors[rows])
        worth = worth.numpy()
    elif way == "bald":
        worth = score_by(way, sampled(bench, solution, rows, temperature))
    else:
        worth = score_by(way, uncertainty_of(chances.numpy()[:, None]))
    best = np.argsort(-worth, kind="stable")[: POOL_PER_PICK * count]
    return rows[best[farthest_first(vectors[rows[best]].numpy(), count)]]


def per_class(bench: Bench, number: int, seed: int) -> np.ndarray:
    """Return so many pictures of each class; of the same seed, fewer are among more."""
    rng, labels = np.random.default_rng(seed), bench.evidence.labels.numpy()
    orders = [rng.permutation(bench.pool[labels[bench.pool] == k]) for k in range(bench.classes)]
    return np.sort(np.concatenate([order[:number] for order in orders]))


def grown(bench: Bench, way: str, numbers: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """Return the labelled pictures of a way: labels per class -> rows."""
    if way == "random per class":
        return {number: per_class(bench, number, seed) for number in numbers}
    labelled = per_class(bench, numbers[0], seed)
    found = {numbers[0]: labelled}
    for number in numbers[1:]:
        wanted = min(len(per_class(bench, number, seed)), len(bench.pool))
        while len(labelled) < wanted:
            count = min(wanted, round(GROWTH * len(labelled))) - len(labelled)
            labelled = np.concatenate([labelled, picked(bench, way, labelled, count, seed)])
        found[number] = labelled
    return found


def finetuned(bench: Bench, rows: np.ndarray, seed: int) -> float:
    """Return the accuracy of `finetune --stages PLAIN` on labelled pictures, by a whole command."""
    index = bench.evidence.index
    with tempfile.TemporaryDirectory() as folder:
        for split, chosen in (("train", rows), ("val", bench.held)):
            for row in chosen:
                position = int(bench.evidence.positions[row])
                file = index.file(position).resolve()
                name = index.classes[int(index.labels[position])]
                target = Path(folder, "data", split, name, f"{position}{file.suffix}")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file)
        command = [sys.executable, "-m", "transferkit", "finetune", "data", "--out", "run"]
        command += ["--stages", PLAIN, "--seed", str(seed), "--json"]
        environment = os.environ | {"TRANSFERKIT_CACHE": str(Path(folder, "cache"))}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"finetune failed:\n{done.stderr[-3000:]}")
        return float(json.loads(done.stdout.splitlines()[-1])["metrics"]["accuracy"])


def reached(numbers: Sequence[int], values: Sequence[float], wanted: float) -> str:
    """Return with how many labels per class a value is first reached, between points linearly."""
    if values[0] >= wanted:
        return f"≤ {numbers[0]}"
    pairs = zip(numbers, numbers[1:], values, values[1:], strict=False)
    for low, high, before, after in pairs:
        if after >= wanted:
            return f"{low + (high - low) * (wanted - before) / (after - before):.0f}"
    return f"> {numbers[-1]}"


def table(results: Results, names: Sequence[str], numbers: Sequence[int]) -> str:
    """Return the tables of all data sets."""
    lines = []
    for data in names:
        ways = list(dict.fromkeys((k[1], k[2]) for k in results if k[0] == data))
        means = {
            way: [
                statistics.mean(results[data, *way, n])
                for n in numbers
                if (data, *way, n) in results
            ]
            for way in ways
        }
        goal = next(w for w in (("plain", WAYS[0]), ("head", WAYS[0])) if w in means)
        wanted = means[goal][-1]
        lines += [
            f"**{data}** (goal: {goal[0]}, {goal[1]}, with the most labels: {100 * wanted:.1f} %)",
            "",
            "| learns | picks | " + " | ".join(map(str, numbers)) + " | labels to the goal |",
            "| --- " * (3 + len(numbers)) + "|",
        ]
        for way in ways:
            cells = []
            for number in numbers:
                of = results.get((data, *way, number), [])
                spread = f" ± {100 * statistics.stdev(of):.1f}" if len(of) > 1 else ""
                cells.append(f"{100 * statistics.mean(of):.1f}{spread}" if of else "")
            whole = len(means[way]) == len(numbers)
            cells.append(reached(numbers, means[way], wanted) if whole else "")
            lines.append(f"| {way[0]} | {way[1]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 25, 50, 100])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--finetune-seeds", nargs="*", type=int, default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: Results = defaultdict(list)
    names = [path.resolve().name for path in options.data]
    for name, path in zip(names, options.data, strict=True):
        evidence = read_evidence(Config(data=Data(path=path.resolve())), silent)
        splits = evidence.index.splits[evidence.positions]
        bench = Bench(evidence, np.flatnonzero(splits == "train"), np.flatnonzero(splits == "val"))
        for seed in options.seeds:
            for way in WAYS:
                for number, rows in grown(bench, way, options.labels, seed).items():
                    for learner, accuracy in bench.accuracies(rows).items():
                        results[name, learner, way, number].append(accuracy)
                        told = f"{name}, seed {seed}, {learner}, {way}, {number}: {accuracy:.3f}"
                        print(told, file=sys.stderr, flush=True)
        for seed in options.finetune_seeds:
            for number in options.labels:
                accuracy = finetuned(bench, per_class(bench, number, seed), seed)
                results[name, "plain", WAYS[0], number].append(accuracy)
                told = f"{name}, seed {seed}, plain, {WAYS[0]}, {number}: {accuracy:.3f}"
                print(told, file=sys.stderr, flush=True)
        text = table(results, [n for n in names if any(k[0] == n for k in results)], options.labels)
        if options.out:
            options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
