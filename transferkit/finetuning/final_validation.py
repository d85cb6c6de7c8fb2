"""The end of a run: the best weights on the validation pictures, as `predict` will apply them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferkit.config import Predict
from transferkit.errors import UserError
from transferkit.evaluation.bootstrap import bootstrap_intervals
from transferkit.evaluation.metrics import Evaluation, evaluate_logits
from transferkit.events import Notice, Show
from transferkit.finetuning.session import Session
from transferkit.inference.calibration import Calibration, calibrate, log_softmax, softmax
from transferkit.inference.decide import DecisionRule
from transferkit.inference.members import Extractor
from transferkit.inference.pipeline import BATCH, Prediction, batches
from transferkit.inference.predict import head_logits, picture_engine
from transferkit.inference.rows import prediction_rows
from transferkit.inference.uncertainty import uncertainty_of
from transferkit.runs.folder import RunFolder
from transferkit.training.cached_features import cached_features

MOST_REFERENCES = 2000  # training pictures whose features a run keeps


@dataclass(frozen=True)
class Validation:
    """What validation says: the metrics, with the temperature applied, and the calibration."""

    evaluation: Evaluation
    calibration: Calibration


def validate(session: Session, folder: RunFolder, show: Show) -> Validation:
    """Run the model on every validation picture; write predictions, logits and calibration.

    Raises UserError when a picture can no longer be read.
    """
    material, index = session.sources.material, session.index
    reference = spread_over_classes(index.labels, material.train)
    show(Notice(f"keeping features of {len(reference)} training pictures, to know unlike ones"))
    features, known = features_at(session, np.concatenate([material.val, reference])).split(
        [len(material.val), len(reference)]
    )  # (N, D), (M, D)
    folder.save_reference(
        {"features": known.half(), "labels": torch.from_numpy(index.labels[reference])}
    )
    logits = head_logits(session.classifier, features)  # (N, K)
    labels = torch.from_numpy(index.labels[material.val])  # (N,)
    folder.save_validation({"logits": logits, "labels": labels, "features": features.half()})
    calibration = calibrate(logits, labels)
    folder.write_json("calibration", calibration.to_dict())
    probabilities = softmax(logits, calibration.temperature)[:, None]  # (N, 1, K)
    prediction = Prediction(probabilities, uncertainty_of(probabilities), features)
    paths = [index.paths[position] for position in material.val]
    rows = prediction_rows(paths, prediction, DecisionRule(), Predict(), index.classes)
    for row in rows:
        del row["margin"]
    folder.write_predictions(
        {"path": row["path"], "truth": index.classes[int(label)]} | row
        for row, label in zip(rows, labels, strict=True)
    )
    logs = log_softmax(logits, calibration.temperature)
    evaluation = evaluate_logits(logs, labels, index.classes).with_intervals(
        bootstrap_intervals(logs, labels.numpy())
    )
    return Validation(evaluation, calibration)


def features_at(session: Session, positions: np.ndarray) -> Tensor:
    """Return features (M, D) of training and validation pictures at these positions of the index.

    From what a solve has read, from the caches of the run where these fit the final weights, else
    from the pictures.
    """
    if session.solved is not None:
        material = session.sources.material
        order = {int(p): n for n, p in enumerate([*material.val, *material.train])}
        return session.solved.features[[order[int(position)] for position in positions]]
    session.classifier.eval()
    features = cached_features(session.sources, session.used_plan, positions)
    return read_features(session, positions) if features is None else features


def read_features(session: Session, positions: np.ndarray) -> Tensor:
    """Return features (M, D) of the pictures at these positions of the index, as `predict` does."""
    maker, index = session.sources.material.maker, session.index
    wanted, device = session.config.device.engine, session.fabric.device
    engine = picture_engine(session.classifier, maker, len(positions), wanted, device)
    files, parts = [index.file(int(position)) for position in positions], []
    for batch in batches([Extractor(maker, engine)], files, BATCH):
        for picture in batch.pictures:
            if not picture.views:
                what = f"{picture.file} can no longer be read: {picture.error}"
                raise UserError(what, "", "restore it, --resume")
        parts.append(batch.features[0][:, 0])
    return torch.cat(parts)


def spread_over_classes(labels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return at most `MOST_REFERENCES` of the positions, each class in its share."""
    ordered = positions[np.argsort(labels[positions], kind="stable")]
    count = min(MOST_REFERENCES, len(ordered))
    return ordered[np.linspace(0, len(ordered) - 1, count).round().astype(int)]
