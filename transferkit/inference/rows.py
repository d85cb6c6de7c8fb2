"""Predictions as rows: one dict per picture, the same columns for all pictures of a job."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferkit.config import Predict
from transferkit.inference.decide import MEASURES, Rules, uniform_of
from transferkit.inference.members import Batch
from transferkit.inference.uncertainty import Uncertainty

DIGITS = 6
SAMPLED = ("expected_entropy", "mutual_information", "variation_ratio")


def columns(options: Predict, num_classes: int, num_samples: int, unlike: bool) -> list[str]:
    """Return the columns of every row, in order.

    path; label and probability, then label_2 ...; with samples std, std_2 ...; entropy, margin,
    with samples SAMPLED; ood and unlike; set and set_size; abstain; error.
    """
    names = ["path", "label", "probability"]
    for rank in range(2, min(options.top_k, num_classes) + 1):
        names += [f"label_{rank}", f"probability_{rank}"]
    if num_samples > 1:
        names += ["std", *(f"std_{r}" for r in range(2, min(options.top_k, num_classes) + 1))]
    names += ["entropy", "margin", *(SAMPLED if num_samples > 1 else ())]
    names += ["ood", "unlike"] if unlike else []
    names += ["set", "set_size"] if options.coverage is not None else []
    abstains = options.abstain_above is not None or options.target_accuracy is not None
    return [*names, *(["abstain"] if abstains else []), "error"]


def error_row(path: str, reason: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the row of a picture that could not be read."""
    return {**dict.fromkeys(names), "path": path, "label": "", "error": reason}


def batch_rows(
    paths: Sequence[str],
    batch: Batch,
    found: Uncertainty,
    rules: Rules,
    options: Predict,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Return one row per readable picture. classes: K names."""
    sampled = batch.probabilities.shape[1] > 1
    sets = None
    if rules.sets is not None:
        sets = rules.sets.contain(found.mean, uniform_of(batch.keys, options.seed))
    rows = []
    for n, path in enumerate(paths):
        row: dict[str, Any] = {"path": path}
        order = np.argsort(-found.mean[n], kind="stable")[: options.top_k]
        for rank, k in enumerate(order, start=1):
            ending = "" if rank == 1 else f"_{rank}"
            row[f"label{ending}"] = classes[int(k)]
            row[f"probability{ending}"] = _rounded(found.mean[n, k])
        if sampled:
            for rank, k in enumerate(order, start=1):
                row["std" if rank == 1 else f"std_{rank}"] = _rounded(found.std[n, k])
        row["entropy"] = _rounded(found.predictive_entropy[n])
        row["margin"] = _rounded(found.margin[n])
        if sampled:
            row |= {name: _rounded(getattr(found, name)[n]) for name in SAMPLED}
        if batch.unlike is not None:
            row |= {"ood": _rounded(batch.unlike[n]), "unlike": bool(batch.unlike[n] > 1)}
        if sets is not None:
            inside = [classes[int(k)] for k in np.argsort(-found.mean[n]) if sets[n, k]]
            row |= {"set": " | ".join(inside), "set_size": len(inside)}
        if rules.threshold is not None:
            row["abstain"] = bool(MEASURES[rules.by](found)[n] > rules.threshold)
        rows.append(row | {"error": ""})
    return rows


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)
