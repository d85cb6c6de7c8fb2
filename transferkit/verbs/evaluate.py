"""The verb `evaluate`: a run's model against labelled pictures, and what its doubts are worth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from transferkit.config import Config, Predict
from transferkit.config.data import Data
from transferkit.data.addresses import fetch
from transferkit.data.groups import SIMILAR
from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.data.reading import Reading, reading_of
from transferkit.errors import UserError, usage_error
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.measured import Measured
from transferkit.evaluation.metrics import evaluate_logits, with_examples
from transferkit.evaluation.selective import detection_auroc, risk_coverage
from transferkit.events import Notice, Progress, Show, Working
from transferkit.finetuning.pictures import with_similar
from transferkit.inference.decide import MEASURES, DecisionRule, class_sets, fit_rule
from transferkit.inference.members import open_members
from transferkit.inference.out_of_fold import out_of_fold
from transferkit.inference.pipeline import Prediction, predictions
from transferkit.inference.sampled import calibrated
from transferkit.inference.uncertainty import uncertainty_of
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def evaluate(
    folders: Sequence[RunFolder],
    data: Data,
    split: str,
    options: Predict,
    show: Show,
    max_pixels: int | None = None,
) -> Measured:
    """Predict labelled pictures and compare.

    data: where they are, and what corrects their labels; its other options are the run's. split:
    "train", "val", "test" or "all"; "auto" is val where DATA has one of its own or where it is what
    the run was trained on, else all. max_pixels: in place of the runs' own.
    Raises UserError when the model knows none of the classes.
    """
    config = config_of(folders[0]) if "recipe" in folders[0].files else Config()
    reading = reading_of(config.data)
    if max_pixels is not None:
        reading = replace(reading, max_pixels=max_pixels)
    index = scan_labelled(data, config, reading, show)
    show(Working("loading the model"))
    members = open_members(folders, options, len(index), max_pixels=max_pixels)
    members = calibrated(members, options, measure=True)
    loaded = members[0].loaded
    trained_on = loaded.description.get("data", {})
    if config.data.group_by == SIMILAR and trained_on.get("pictures") == len(index):
        index = with_similar(config, index, show)
    if trained_on.get("files") == index.picture_digest and trained_on.get("folds"):
        text = "the run was trained on all of these pictures: evaluate --folds says more"
        show(Notice(text, warning=True))
    is_own = trained_on.get("fingerprint") == index.fingerprint
    positions = positions_of(index, split, is_own or not index.drawn_split)
    labels = model_labels(index, positions, loaded.classes)
    collected = Collected(loaded.classes, fit_rule(members, options), options.seed)
    files = [index.file(int(p)) for p in positions]
    truth = zip(labels, (index.paths[int(p)] for p in positions), strict=True)
    for batch, prediction in predictions(members, files, options, show):
        labelled = list(zip(batch.pictures, truth, strict=False))
        for picture, _ in labelled:
            if not picture.views:
                show(Notice(f"{picture.file} left out: {picture.error}", warning=True))
        if prediction is not None:
            collected.add([true for picture, true in labelled if picture.views], prediction)
    show(Working("computing figures"))
    result = collected.result(Counter(index.classes[int(index.labels[p])] for p in positions))
    warn_of_classes(result, show)
    return result


def evaluate_folds(folder: RunFolder) -> Measured:
    """Compare what a run of `finetune --folds` says out of fold with the labels.

    Raises UserError where the run was not judged by folds.
    """
    found = out_of_fold(folder)
    classes = folder.read_description()["classes"]
    probabilities = found.logits.double().softmax(1).numpy()[:, None]  # (N, 1, K)
    collected = Collected(classes, DecisionRule(), 0)
    truth = list(zip(found.labels.tolist(), found.paths, strict=True))
    features = torch.empty(len(truth), 0)
    collected.add(truth, Prediction(probabilities, uncertainty_of(probabilities), features))
    return collected.result(Counter(classes[label] for label in found.labels.tolist()))


def scan_labelled(data: Data, config: Config, reading: Reading, show: Show) -> DatasetIndex:
    """Scan what is to be evaluated, with the split that the run would draw."""
    options = ScanOptions(
        data.manifest,
        config.data.val_fraction,
        config.training.seed,
        reading=reading,
        use="measure",
        allow_outside=data.allow_outside,
        corrections=data.corrections,
        group_by=config.data.group_by,
    )
    fetch([data.path], show)
    show(Working("reading pictures"))
    index = scan(data.path, options, lambda done, total: show(Progress("scan", done, total)))
    for warning in index.warnings:
        show(Notice(warning, warning=True))
    return index


def model_labels(
    index: DatasetIndex, positions: np.ndarray, classes: Sequence[str]
) -> list[int | None]:
    """Return the model's label of every picture, None for a class that it does not have.

    Raises UserError where it has none of them.
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
    """What is kept of every readable picture while batches go by."""

    def __init__(self, classes: Sequence[str], rule: DecisionRule, seed: int) -> None:
        self.classes, self.rule, self.seed = tuple(classes), rule, seed
        self.truth: list[tuple[int | None, str]] = []
        self.parts: list[dict[str, np.ndarray]] = []

    def add(self, truth: Sequence[tuple[int | None, str]], prediction: Prediction) -> None:
        """Keep a batch of readable pictures: (label or None, path), N of each."""
        self.truth += truth
        mean, ood = prediction.uncertainty.mean, prediction.ood
        part = {name: score(prediction.uncertainty) for name, score in MEASURES.items()}
        part |= {"mean": mean} | ({} if ood is None else {"ood": ood})
        sets = class_sets(self.rule, prediction, self.seed)
        self.parts.append(part if sets is None else part | {"sets": sets})

    def result(self, counts: Counter[str]) -> Measured:
        """Measure what was kept. counts: pictures per class of the data."""
        labels = np.array([-1 if label is None else label for label, _ in self.truth])
        known = labels >= 0
        if not known.any():
            raise UserError("no picture could be read")
        every = {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}
        ood = every.pop("ood", None)
        unlike_auroc = np.nan if ood is None else detection_auroc(ood, ~known)
        figures = {name: values[known] for name, values in every.items()}
        labels, means, sets = labels[known], figures.pop("mean"), figures.pop("sets", None)
        paths = [path for label, path in self.truth if label is not None]
        logs = np.log(np.maximum(means, np.finfo(np.float64).tiny))
        evaluation = evaluate_logits(logs, labels, self.classes)
        evaluation = with_examples(evaluation, means, labels, paths)
        evaluation = replace(evaluation, intervals=bootstrap_intervals(logs, labels))
        correct = means.argmax(axis=1) == labels
        curve = risk_coverage(figures["entropy"], correct)
        varied = {name: score for name, score in figures.items() if score.max() > score.min()}
        return Measured(
            evaluation=evaluation,
            kept=tuple({"kept": s, "accuracy": curve.accuracy_at(s)} for s in SHARES),
            wrong_detection={n: detection_auroc(v, ~correct) for n, v in varied.items()},
            missing=tuple(name for name in self.classes if name not in counts),
            unknown={n: c for n, c in counts.items() if n not in self.classes},
            unlike_auroc=unlike_auroc,
            sets=None if sets is None else set_figures(sets, labels),
        )


def set_figures(sets: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how many sets (N, K) hold the label, their mean size, and the share of empty ones."""
    sizes = sets.sum(axis=1)
    coverage = float(sets[np.arange(len(labels)), labels].mean())
    return {"coverage": coverage, "size": float(sizes.mean()), "empty": float((sizes == 0).mean())}


def warn_of_classes(measured: Measured, show: Show) -> None:
    """Say which classes of the data the model does not have, and which have no pictures."""
    if measured.unknown:
        names = ", ".join(
            f"{name} ({count})" for name, count in list(measured.unknown.items())[:10]
        )
        text = (
            f"left out, as the model does not know {len(measured.unknown)} of the classes: {names}"
        )
        show(Notice(text, warning=True))
    if measured.missing:
        shown = ", ".join(measured.missing[:10])
        show(Notice(f"no pictures of {len(measured.missing)} of the model's classes: {shown}"))


def positions_of(index: DatasetIndex, split: str, has_val: bool) -> np.ndarray:
    """Return the positions to evaluate. Raises a usage error when the split is empty."""
    if split == "all" or (split == "auto" and not (has_val and len(index.of_split("val")))):
        return np.arange(len(index))
    wanted = "val" if split == "auto" else split
    positions = index.of_split(wanted)
    if not len(positions):
        raise usage_error(f"the data set has no {wanted} pictures", "", "try --split all")
    return positions
