"""A prediction as rows of a table: one per picture, with the same columns in all."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferkit.config import Predict
from transferkit.inference.decide import MEASURES, DecisionRule, class_sets
from transferkit.inference.pipeline import Prediction

DIGITS = 6
SAMPLED = ("expected_entropy", "mutual_information", "variation_ratio")


def columns(options: Predict, num_classes: int, num_samples: int, has_ood: bool) -> list[str]:
    """Return the columns of every row, in order.

    path; label and probability, then label_2 ...; with samples std, std_2 ...; entropy, margin,
    with samples SAMPLED; ood and unlike; set and set_size; abstain; error.
    """
    ranks = range(1, min(options.top_k, num_classes) + 1)
    sampled = num_samples > 1
    names = ["path"]
    names += [ranked(name, rank) for rank in ranks for name in ("label", "probability")]
    names += [ranked("std", rank) for rank in ranks] if sampled else []
    names += ["entropy", "margin", *(SAMPLED if sampled else ())]
    names += ["ood", "unlike"] if has_ood else []
    names += ["set", "set_size"] if options.coverage is not None else []
    abstains = options.abstain_above is not None or options.target_accuracy is not None
    return [*names, *(["abstain"] if abstains else []), "error"]


def ranked(name: str, rank: int) -> str:
    """Return the column of the class at a rank: NAME for the first, NAME_2 for the second ..."""
    return name if rank == 1 else f"{name}_{rank}"


def error_row(path: str, reason: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the row of a picture that could not be read."""
    return {**dict.fromkeys(names), "path": path, "label": "", "error": reason}


def prediction_rows(
    paths: Sequence[str],
    prediction: Prediction,
    rule: DecisionRule,
    options: Predict,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Return one row per readable picture. classes: K names."""
    uncertainty = prediction.uncertainty
    sampled = prediction.probabilities.shape[1] > 1
    sets = class_sets(rule, prediction, options.seed)
    rows = []
    for n, path in enumerate(paths):
        row: dict[str, Any] = {"path": path}
        order = np.argsort(-uncertainty.mean[n], kind="stable")[: options.top_k]
        for rank, k in enumerate(order, start=1):
            row[ranked("label", rank)] = classes[int(k)]
            row[ranked("probability", rank)] = _rounded(uncertainty.mean[n, k])
        for rank, k in enumerate(order if sampled else (), start=1):
            row[ranked("std", rank)] = _rounded(uncertainty.std[n, k])
        row["entropy"] = _rounded(uncertainty.predictive_entropy[n])
        row["margin"] = _rounded(uncertainty.margin[n])
        if sampled:
            row |= {name: _rounded(getattr(uncertainty, name)[n]) for name in SAMPLED}
        if prediction.ood is not None:
            row |= {"ood": _rounded(prediction.ood[n]), "unlike": bool(prediction.ood[n] > 1)}
        if sets is not None:
            inside = [classes[int(k)] for k in np.argsort(-uncertainty.mean[n]) if sets[n, k]]
            row |= {"set": " | ".join(inside), "set_size": len(inside)}
        if rule.threshold is not None:
            row["abstain"] = bool(MEASURES[rule.by](uncertainty)[n] > rule.threshold)
        rows.append(row | {"error": ""})
    return rows


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)
