"""The verb `evaluate`: a run's model against labelled pictures, and what its doubts are worth."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from transferkit.config import Config, Predict
from transferkit.data.addresses import fetch
from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.data.reading import Reading, reading_of
from transferkit.errors import UserError, usage_error
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.measured import Measured
from transferkit.evaluation.metrics import evaluate_logits, with_examples
from transferkit.evaluation.selective import detection_auroc, risk_coverage
from transferkit.events import Event, Notice, Progress, Working
from transferkit.inference.decide import MEASURES, Rules, make_rules, uniform_of
from transferkit.inference.members import open_members
from transferkit.inference.uncertainty import Uncertainty
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder
from transferkit.verbs.predict import Job, batches

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def evaluate(
    folders: Sequence[RunFolder],
    data: tuple[Path | None, Path | None],
    split: str,
    options: Predict,
    show: Callable[[Event], None],
    allow_outside: bool = False,
    max_pixels: int | None = None,
) -> Measured:
    """Predict labelled pictures and compare.

    data: folder and manifest. split: "train", "val", "test" or "all"; "auto" is val where DATA has
    one of its own or where it is what the run was trained on, else all. allow_outside: whether the
    manifest may name files outside of its folder. max_pixels: in place of the runs' own.
    Raises UserError when the model knows none of the classes.
    """
    config = config_of(folders[0]) if "recipe" in folders[0].files else Config()
    reading = reading_of(config.data)
    if max_pixels is not None:
        reading = replace(reading, max_pixels=max_pixels)
    index = scan_labelled(data, config, reading, show, allow_outside)
    show(Working("loading the model"))
    members = open_members(folders, options, len(index), config.augment.flip, max_pixels)
    loaded = members[0].loaded
    is_own = loaded.description.get("data", {}).get("fingerprint") == index.fingerprint
    positions = positions_of(index, split, is_own or not index.drawn_split)
    known = known_labels(index, positions, loaded.classes)
    job = Job(members, [], options, make_rules(members, options), [])
    found = Collected(loaded.classes, job.rules, options.seed)
    files = [index.file(int(p)) for p in positions]
    rows = zip(known, (index.paths[int(p)] for p in positions), strict=True)
    done = 0
    for reads, batch, measured in batches(job, files):
        labels = []
        for read in reads:
            label, path = next(rows)
            if read.views is None:
                show(Notice(f"{read.file} left out: {read.reason}", warning=True))
            else:
                labels.append((label, path))
        if batch is not None and measured is not None:
            found.add(labels, measured, batch.unlike, batch.keys)
        done += len(reads)
        show(Progress("pictures", done, len(files)))
    show(Working("computing figures"))
    result = found.result(Counter(index.classes[int(index.labels[p])] for p in positions))
    tell_differences(result, show)
    return result


def scan_labelled(
    data: tuple[Path | None, Path | None],
    config: Config,
    reading: Reading,
    show: Callable[[Event], None],
    allow_outside: bool = False,
) -> DatasetIndex:
    """Scan what is to be evaluated, with the split that the run would draw."""
    folder, manifest = data
    options = ScanOptions(
        manifest,
        config.data.val_fraction,
        config.training.seed,
        reading=reading,
        use="measure",
        allow_outside=allow_outside,
    )
    fetch([folder], show)
    show(Working("reading pictures"))
    index = scan(folder, options, lambda done, total: show(Progress("scan", done, total)))
    for warning in index.warnings:
        show(Notice(warning, warning=True))
    return index


def known_labels(
    index: DatasetIndex, positions: np.ndarray, classes: Sequence[str]
) -> list[int | None]:
    """Return the model's label of every picture, None for a class it does not know.

    Raises UserError where it knows none of them.
    """
    number = {name: k for k, name in enumerate(classes)}
    labels = [number.get(index.classes[int(index.labels[p])]) for p in positions]
    if all(label is None for label in labels):
        strangers = [name for name in index.classes if name not in number]
        raise UserError(
            f"the model knows none of the classes: {', '.join(strangers[:10])}",
            f"it knows: {', '.join(classes[:30])}",
            "give data with folders of the same names",
        )
    return labels


class Collected:
    """What is kept of every picture while batches go by."""

    def __init__(self, classes: Sequence[str], rules: Rules, seed: int) -> None:
        self.classes, self.rules, self.seed = tuple(classes), rules, seed
        self.labels: list[int] = []
        self.paths: list[str] = []
        self.means: list[np.ndarray] = []
        self.scores: dict[str, list[float]] = {name: [] for name in MEASURES}
        self.unlike: list[tuple[float, bool]] = []
        self.set_sizes: list[tuple[bool, int]] = []

    def add(
        self,
        labels: Sequence[tuple[int | None, str]],
        found: Uncertainty,
        unlike: np.ndarray | None,
        keys: Sequence[int],
    ) -> None:
        """Keep a batch of readable pictures: (label or None, path), N of each."""
        scores = {name: score(found) for name, score in MEASURES.items()}
        sets = None
        if self.rules.sets is not None:
            sets = self.rules.sets.contain(found.mean, uniform_of(keys, self.seed))
        for n, (label, path) in enumerate(labels):
            if unlike is not None:
                self.unlike.append((float(unlike[n]), label is None))
            if label is None:
                continue
            self.labels.append(label)
            self.paths.append(path)
            self.means.append(found.mean[n])
            for name, values in scores.items():
                self.scores[name].append(float(values[n]))
            if sets is not None:
                self.set_sizes.append((bool(sets[n, label]), int(sets[n].sum())))

    def result(self, counts: Counter[str]) -> Measured:
        """Measure what was kept. counts: pictures per class of the data."""
        if not self.labels:
            raise UserError("no picture could be read")
        labels, means = np.array(self.labels), np.stack(self.means)
        logs = np.log(np.maximum(means, np.finfo(np.float64).tiny))
        evaluation = evaluate_logits(logs, labels, self.classes)
        evaluation = with_examples(evaluation, means, labels, self.paths)
        evaluation = replace(evaluation, intervals=bootstrap_intervals(logs, labels))
        correct = means.argmax(axis=1) == labels
        curve = risk_coverage(self.scores["entropy"], correct)
        varied = {n: v for n, v in self.scores.items() if max(v) > min(v)}
        unlike = np.array(self.unlike, dtype=np.float64).reshape(-1, 2)
        return Measured(
            evaluation=evaluation,
            kept=tuple({"kept": s, "accuracy": curve.accuracy_at(s)} for s in SHARES),
            wrong_detection={n: detection_auroc(v, ~correct) for n, v in varied.items()},
            missing=tuple(name for name in self.classes if name not in counts),
            unknown={n: c for n, c in counts.items() if n not in self.classes},
            unlike_auroc=detection_auroc(unlike[:, 0], unlike[:, 1]) if len(unlike) else np.nan,
            sets=self._sets(),
        )

    def _sets(self) -> dict[str, float] | None:
        if not self.set_sizes:
            return None
        held, sizes = np.array(self.set_sizes).T
        empty = float((sizes == 0).mean())
        return {"coverage": float(held.mean()), "size": float(sizes.mean()), "empty": empty}


def tell_differences(found: Measured, show: Callable[[Event], None]) -> None:
    """Say which classes of the data the model does not know, and which have no pictures."""
    if found.unknown:
        names = ", ".join(f"{name} ({count})" for name, count in list(found.unknown.items())[:10])
        text = f"left out, as the model does not know {len(found.unknown)} of the classes: {names}"
        show(Notice(text, warning=True))
    if found.missing:
        shown = ", ".join(found.missing[:10])
        show(Notice(f"no pictures of {len(found.missing)} of the model's classes: {shown}"))


def positions_of(index: DatasetIndex, split: str, has_val: bool) -> np.ndarray:
    """Return the positions to evaluate. Raises a usage error when the split is empty."""
    if split == "all" or (split == "auto" and not (has_val and len(index.of_split("val")))):
        return np.arange(len(index))
    wanted = "val" if split == "auto" else split
    positions = index.of_split(wanted)
    if not len(positions):
        raise usage_error(f"the data set has no {wanted} pictures", "", "try --split all")
    return positions
