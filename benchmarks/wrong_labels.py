"""Wrong labels: how many of those that were changed are found, and how well they are counted.

    python benchmarks/wrong_labels.py DATA... [--share 0.05] [--seeds 0 1 2] [--out FILE.md]

Features of each data set are read once, in the framing and size that its own labels choose. For
each seed a share of all labels, training and validation alike, is changed to another class at
random; the solve is done again on the changed labels, and its leave-one-out probabilities are
ranked by
  ours        `transferkit labels`: the given class's probability
  margin      the given class's probability minus that of the best other one
  cleanlab    `cleanlab.rank.get_label_quality_scores` on the same probabilities, where it is
              installed, by its three methods; without it, by their documented formulas
Columns: precision among as many as were changed; AUROC; share of changed labels whose right class
is proposed; the estimated number and its standard error, and what confident learning counts, each
as a share of the true number. The last lines of a data set are means over the seeds.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from transferkit.closed_form.suspects import estimate, rank
from transferkit.config import Config, Data
from transferkit.events import silent
from transferkit.finetuning.evidence import Evidence, out_of_sample
from transferkit.finetuning.pictures import read_evidence

HEADINGS = ("data", "seed", "changed", "ranked by", "precision", "AUROC", "proposed")
HEADINGS += ("estimated / true", "confident learning / true")
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Labels (N,) and probabilities (N, K) -> quality (N,), low where a label looks wrong."""


def self_confidence(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of the given class."""
    return probabilities[np.arange(len(labels)), labels]


def normalized_margin(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return by how much the given class is more probable than the best other one, 0 to 1."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return (self_confidence(labels, probabilities) - others.max(1) + 1) / 2


def confidence_weighted_entropy(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the given class's probability over the normalised entropy."""
    p = probabilities.clip(1e-12, 1)
    entropy = -(p * np.log(p)).sum(1) / np.log(p.shape[1])
    return self_confidence(labels, p) / entropy.clip(1e-12)


def others() -> dict[str, Scores]:
    """Return what ours is compared with, by name."""
    formulas: tuple[Scores, ...] = (
        self_confidence,
        normalized_margin,
        confidence_weighted_entropy,
    )
    try:
        from cleanlab.rank import get_label_quality_scores as scores
    except ImportError:
        return {f"formula: {formula.__name__}": formula for formula in formulas}

    def of(method: str) -> Scores:
        return lambda labels, probabilities: scores(labels, probabilities, method=method)

    return {f"cleanlab: {formula.__name__}": of(formula.__name__) for formula in formulas}


def changed(evidence: Evidence, share: float, seed: int) -> tuple[Evidence, np.ndarray]:
    """Return evidence with a share of other labels, and which these are (N,)."""
    generator, labels = np.random.default_rng(seed), evidence.labels.numpy().copy()
    num_classes = len(evidence.index.classes)
    which = generator.choice(len(labels), round(share * len(labels)), replace=False)
    steps = generator.integers(1, num_classes, len(which))
    labels[which] = (labels[which] + steps) % num_classes
    return replace(evidence, labels=torch.from_numpy(labels)), which


def measure(evidence: Evidence, share: float, seed: int) -> Iterator[tuple[str, list[float]]]:
    """Yield for each ranking its name and its figures; the numbers are the same for all."""
    noisy, which = changed(evidence, share, seed)
    probabilities, labels = out_of_sample(noisy), noisy.labels
    is_wrong = np.zeros(len(labels), dtype=bool)
    is_wrong[which] = True
    ranking, counted = rank(probabilities, labels), estimate(probabilities, labels, seed)
    right = ranking.proposed[which] == evidence.labels[which]
    figures = {"ours": ranking.doubts.numpy()}
    for name, score in others().items():
        figures[name] = -np.asarray(score(labels.numpy(), probabilities.numpy()))
    for name, doubts in figures.items():
        first = np.argsort(-doubts, kind="stable")[: len(which)]
        precision, auroc = float(is_wrong[first].mean()), float(roc_auc_score(is_wrong, doubts))
        numbers = (counted.number, counted.error, counted.confident)
        shares = [number / len(which) for number in numbers]
        yield name, [precision, auroc, float(right.double().mean()), *shares]


def line(name: str, seed: str, count: int, way: str, figures: list[float]) -> str:
    """Return a row of the table."""
    precision, auroc, proposed, number, error, confident = figures
    cells = [name, seed, str(count), way, f"{precision:.3f}", f"{auroc:.3f}", f"{proposed:.2f}"]
    return f"| {' | '.join([*cells, f'{number:.2f} ± {error:.2f}', f'{confident:.2f}'])} |"


def table(data: Path, share: float, seeds: list[int]) -> Iterator[str]:
    """Yield the rows of a data set as they come, then their means."""
    evidence = read_evidence(Config(data=Data(path=data)), silent)
    name, count = data.resolve().name, round(share * len(evidence.labels))
    found: dict[str, list[list[float]]] = {}
    for seed in seeds:
        for way, figures in measure(evidence, share, seed):
            found.setdefault(way, []).append(figures)
            yield line(name, str(seed), count, way, figures)
    for way, rows in found.items():
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        yield line(f"**{name}**", "mean", count, way, means)


def main() -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}"]
    print("\n".join(lines))
    for data in given.data:
        for row in table(data, given.share, given.seeds):
            print(row, flush=True)
            lines.append(row)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
