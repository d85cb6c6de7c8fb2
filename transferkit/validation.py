"""The end of a run: the best weights on the validation pictures, as `predict` will run them."""

from dataclasses import dataclass

import torch

from transferkit.errors import UserError
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.metrics import Evaluation, evaluate_logits
from transferkit.inference.calibration import Calibration, calibrate, log_softmax, softmax
from transferkit.inference.predict import (
    features_of,
    head_logits,
    picture_engine,
    prediction_row,
)
from transferkit.inference.uncertainty import entropy
from transferkit.run_folder import RunFolder
from transferkit.session import Session


@dataclass(frozen=True)
class Validation:
    """What validation says: the metrics, with the temperature applied, and the calibration."""

    evaluation: Evaluation
    calibration: Calibration


def validate(session: Session, folder: RunFolder) -> Validation:
    """Run the model on every validation picture; write predictions, logits and calibration.

    Raises UserError when a picture can no longer be read.
    """
    material, index = session.sources.material, session.index
    files = [index.file(int(position)) for position in material.val]
    engine = picture_engine(
        session.classifier,
        material.maker,
        len(files),
        session.config.device.engine,
        session.fabric.device,
    )
    rows = []
    for file, features, reason in features_of(engine, material.maker, files):
        if features is None:
            raise UserError(f"{file} can no longer be read: {reason}", "", "restore it, --resume")
        rows.append(features)
    features = torch.stack(rows)  # (N, D)
    logits = head_logits(session.classifier, features)  # (N, K)
    labels = torch.from_numpy(index.labels[material.val])  # (N,)
    folder.save_validation({"logits": logits, "labels": labels, "features": features.half()})
    calibration = calibrate(logits, labels)
    folder.write_json("calibration", calibration.to_dict())
    probabilities = softmax(logits, calibration.temperature)
    surprise = entropy(probabilities)
    predictions = []
    for n, position in enumerate(material.val):
        truth = index.classes[int(labels[n])]
        row = prediction_row(index.paths[position], probabilities[n], index.classes, 3)
        path, error = row.pop("path"), row.pop("error")
        row |= {"entropy": round(float(surprise[n]), 6), "error": error}
        predictions.append({"path": path, "truth": truth} | row)
    folder.write_predictions(predictions)
    logs = log_softmax(logits, calibration.temperature)
    evaluation = evaluate_logits(logs, labels, index.classes).with_intervals(
        bootstrap_intervals(logs, labels.numpy())
    )
    return Validation(evaluation, calibration)
