"""The verb `evaluate`: a run's model against labelled pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from transferkit.config import Config
from transferkit.data.index import DatasetIndex, ScanOptions, scan
from transferkit.errors import UserError, usage_error
from transferkit.evaluation.metrics import Evaluation, evaluate_logits
from transferkit.inference.predict import features_of, head_logits, load_run, picture_engine
from transferkit.recipes import config_of
from transferkit.run_folder import open_run
from transferkit.training.events import Event, Notice, Progress


def evaluate(
    run: Path, data: Path | None, manifest: Path | None, split: str, show: Callable[[Event], None]
) -> Evaluation:
    """Predict labelled pictures and compare.

    split: "train", "val", "test" or "all"; "auto" is val where DATA has one of its own or where it
    is what the run was trained on, else all.
    Raises UserError when DATA has classes that the model does not know.
    """
    folder = open_run(run)
    loaded = load_run(folder)
    config = config_of(folder) if "recipe" in folder.files else Config()
    options = ScanOptions(
        manifest,
        config.data.val_fraction,
        config.training.seed,
        max_pixels=loaded.maker.max_pixels,
        to_train=False,
    )
    index = scan(data, options, lambda done, total: show(Progress("scan", done, total)))
    for warning in index.warnings:
        show(Notice(warning, warning=True))
    unknown = sorted(set(index.classes) - set(loaded.classes))
    if unknown:
        raise UserError(
            f"the model does not know {len(unknown)} of the classes: {', '.join(unknown[:10])}",
            f"it knows: {', '.join(loaded.classes[:30])}",
            "rename these folders, or leave them out",
        )
    is_own = loaded.description.get("data", {}).get("fingerprint") == index.fingerprint
    positions = positions_of(index, split, is_own or not index.drawn_split)
    engine = picture_engine(
        loaded.classifier, loaded.maker, len(positions), "auto", torch.device("cpu")
    )
    number = {name: k for k, name in enumerate(loaded.classes)}
    labels, features = [], []
    found = features_of(engine, loaded.maker, [index.file(int(p)) for p in positions])
    for done, (position, (file, row, reason)) in enumerate(zip(positions, found, strict=True)):
        if row is None:
            show(Notice(f"{file} left out: {reason}", warning=True))
            continue
        labels.append(number[index.classes[int(index.labels[position])]])
        features.append(row)
        show(Progress("pictures", done + 1, len(positions)))
    if not features:
        raise UserError("no picture could be read")
    logits = head_logits(loaded.classifier, torch.stack(features)) / loaded.temperature
    return evaluate_logits(logits, torch.tensor(labels), loaded.classes)


def positions_of(index: DatasetIndex, split: str, has_val: bool) -> np.ndarray:
    """Return the positions to evaluate. Raises a usage error when the split is empty."""
    if split == "all" or (split == "auto" and not has_val):
        return np.arange(len(index))
    wanted = "val" if split == "auto" else split
    positions = index.of_split(wanted)
    if not len(positions):
        raise usage_error(f"the data set has no {wanted} pictures", "", "try --split all")
    return positions
