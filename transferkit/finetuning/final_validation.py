"""The end of a run: the best weights on the validation pictures, as `predict` will apply them."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from transferkit.config import Predict
from transferkit.errors import UserError
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.metrics import Evaluation, evaluate_logits
from transferkit.evaluation.reliability import log_softmax
from transferkit.events import Notice, Show
from transferkit.inference.calibration import (
    Calibration,
    SampledCalibration,
    calibrate,
    calibrate_samples,
    softmax,
)
from transferkit.inference.decide import DecisionRule
from transferkit.inference.dropout import active_dropout, head_samples
from transferkit.inference.members import Extractor
from transferkit.inference.pipeline import BATCH, Prediction, batches
from transferkit.inference.predict import head_logits, picture_engine
from transferkit.inference.rows import prediction_rows
from transferkit.inference.uncertainty import uncertainty_of
from transferkit.training.cached_features import cached_features
from transferkit.training.parts import Parts
from transferkit.training.run import Run

FEW_TO_CALIBRATE = 200
"""With fewer validation pictures, leave-one-out on the training pictures says more."""

SAMPLES, MOST_SAMPLED = 30, 2000
"""Of MC dropout for each picture, and pictures, to say how far the samples' mean can be trusted."""


@dataclass(frozen=True)
class Validation:
    """What validation says: the metrics, with the temperature applied, and the calibration.

    loss: without any temperature.
    """

    evaluation: Evaluation
    loss: float
    calibration: Calibration


def validate(run: Run, show: Show) -> Validation:
    """Run the model on every validation picture; write predictions, logits and calibration.

    Raises UserError when a picture can no longer be read.
    """
    material, index, folder = run.material, run.parts.index, run.folder
    reference = material.reference
    of = f"features of {len(reference):,} training pictures"
    show(Notice(f"storing {of} for out-of-distribution detection"))
    features, known = features_at(run, np.concatenate([material.val, reference])).split(
        [len(material.val), len(reference)]
    )  # (N, D), (M, D)
    folder.save_reference(
        {"features": known.half(), "labels": torch.from_numpy(index.labels[reference])}
    )
    folded = None if run.solved is None else run.solved.out_of_fold
    logits = head_logits(run.model, features) if folded is None else folded.float()  # (N, K)
    labels = torch.from_numpy(index.labels[material.val])  # (N,)
    kept = {"logits": logits, "labels": labels, "features": features.half()}
    folds = None if index.folds is None else index.folds[material.val]
    if folds is not None:
        kept["folds"] = torch.from_numpy(folds)
    left_out = run.solved.left_out if run.solved and len(labels) < FEW_TO_CALIBRATE else None
    calibration = calibrate(logits, labels)
    if left_out is not None and len(left_out["labels"]) > len(labels):
        kept |= {f"left_out_{name}": tensor for name, tensor in left_out.items()}
        calibration = calibrate(**left_out, judged_on="leave-one-out")
        show(
            Notice(
                f"calibrated on {calibration.pictures:,} pictures by leave-one-out, "
                f"since validation has only {len(labels):,}"
            )
        )
    sampled = None
    if folds is None:  # the head has seen all others
        sampled = sampled_calibration(run, features, labels, calibration.temperature)
    calibration = replace(calibration, sampled=sampled)
    folder.save_validation(kept)
    folder.write_json("calibration", calibration.to_dict())
    probabilities = softmax(logits, calibration.temperature)[:, None]  # (N, 1, K)
    prediction = Prediction(probabilities, uncertainty_of(probabilities), features)
    paths = [index.paths[position] for position in material.val]
    rows = prediction_rows(paths, prediction, DecisionRule(), Predict(), index.classes)
    for number, row in enumerate(rows):
        del row["margin"]
        if folds is not None:
            row["fold"] = int(folds[number]) + 1
    folder.write_predictions(
        {"path": row["path"], "truth": index.classes[int(label)]} | row
        for row, label in zip(rows, labels, strict=True)
    )
    logs = log_softmax(logits, calibration.temperature)
    evaluation = evaluate_logits(logs, labels, index.classes)
    intervals = bootstrap_intervals(logs, labels.numpy())
    loss = float(cross_entropy(logits.double(), labels))
    return Validation(replace(evaluation, intervals=intervals), loss, calibration)


def sampled_calibration(
    run: Run, features: Tensor, labels: Tensor, temperature: float
) -> SampledCalibration | None:
    """Measure what MC dropout in the head says of validation; None where the head has none.

    features: (N, D), of which at most `MOST_SAMPLED` count. temperature: of a single pass.
    """
    head, step = run.model.head, -(-len(labels) // MOST_SAMPLED)
    if not active_dropout(head):
        return None
    rows, truth, seed = features[::step], labels[::step].numpy(), run.parts.config.training.seed
    logits = [
        head_samples(head, part, range(n * BATCH, n * BATCH + len(part)), SAMPLES, seed)
        for n, part in enumerate(rows.split(BATCH))
    ]
    return calibrate_samples(torch.cat(logits).double().numpy(), truth, temperature)


def features_at(run: Run, positions: np.ndarray) -> Tensor:
    """Return features (M, D) of training and validation pictures at these positions of the index.

    From what a solve has read, from the caches of the run where these fit the final weights, else
    from the pictures.
    """
    if run.solved is not None:
        order = {int(p): n for n, p in enumerate(run.solved.positions(run.material))}
        return run.solved.features[[order[int(position)] for position in positions]]
    run.classifier.eval()
    features = cached_features(run.parts, run.stages, run.state.base, positions)
    return read_features(run.parts, positions) if features is None else features


def read_features(parts: Parts, positions: np.ndarray) -> Tensor:
    """Return features (M, D) of the pictures at these positions of the index, as `predict` does."""
    maker, index, wanted = parts.material.maker, parts.index, parts.settings.engine
    engine = picture_engine(parts.classifier, maker, len(positions), wanted, parts.device)
    files, rows = [index.file(int(position)) for position in positions], []
    for batch in batches([Extractor(maker, engine)], files, BATCH):
        for picture in batch.pictures:
            if not picture.views:
                what = f"{picture.file} can no longer be read: {picture.error}"
                raise UserError(what, "", "restore it, --resume")
        rows.append(batch.features[0][:, 0])
    return torch.cat(rows)
