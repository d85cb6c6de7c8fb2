"""The members of a prediction: a run, an ensemble of runs, or exported models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from transferkit.backbones.engine import Engine
from transferkit.config import Predict
from transferkit.data.loader import ViewMaker
from transferkit.errors import UserError, usage_error
from transferkit.files.foreign_files import understood
from transferkit.inference.dropout import require_dropout, set_dropout_
from transferkit.inference.exported import open_exported
from transferkit.inference.ood import OodScore, fit_ood_score
from transferkit.inference.predict import LoadedRun, load_run, picture_engine
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import RunFolder

TTA_LEVEL = "light"


@dataclass(frozen=True)
class Extractor:
    """Extracts features: `engine` runs on the views of `maker`."""

    maker: ViewMaker
    engine: Engine


@dataclass(frozen=True)
class Member(Extractor):
    """A model of the ensemble. path: of the run folder, or of the exported file.

    order: (K,) positions of the first member's classes among its own. folder: None for an exported
    file: there the engine returns logits, they count as features, and the head is the identity.
    """

    loaded: LoadedRun
    order: NDArray[np.int64]
    path: Path
    folder: RunFolder | None = None
    ood: OodScore | None = None

    @property
    def files(self) -> list[Path]:
        """The files that the predictions depend on."""
        if self.folder is not None:
            return self.folder.deciding_files()
        weights = self.path.with_suffix(".bin")  # of OpenVINO
        return [path for path in (self.path, weights) if path.is_file()]


def open_members(
    models: Sequence[RunFolder | Path],
    options: Predict,
    num_pictures: int,
    trusted: bool = False,
    max_pixels: int | None = None,
) -> list[Member]:
    """Load run folders and exported files, and prepare what is sampled.

    trusted: see `require_trust`. max_pixels: overrides that of the models.
    Raises a usage error where samples would not vary, or where classes differ between models.
    """
    members: list[Member] = []
    for model in models:
        if isinstance(model, Path):
            loaded, engine = open_exported(model, trusted)
            maker, order = loaded.maker.with_limit(max_pixels), np.arange(len(loaded.classes))
            members.append(Member(maker, engine, loaded, order, model))
            continue
        loaded = load_run(model, options.enable_dropout if options.mc_scope == "all" else None)
        if options.mc_dropout:
            _prepare_dropout(loaded, options)
        classes = members[0].loaded.classes if members else loaded.classes
        if set(classes) != set(loaded.classes):
            what = f"{model.path} and {members[0].path} have different classes"
            where = f"only one of them has: {', '.join(sorted(set(classes) ^ set(loaded.classes)))}"
            raise usage_error(what, where, "the runs of an ensemble need the same classes")
        views, cpu = num_pictures * max(options.tta, 1), torch.device("cpu")
        engine = picture_engine(loaded.classifier, loaded.maker, views, options.engine, cpu)
        maker = replace(loaded.maker, level=TTA_LEVEL, flip=flips(model), seed=options.seed)
        maker = maker.with_limit(max_pixels)
        order = np.array([loaded.classes.index(name) for name in classes])
        ood = _ood_score(model, options.ood)
        members.append(Member(maker, engine, loaded, order, model.path, model, ood))
    return members


def flips(folder: RunFolder) -> bool:
    """Whether views may be mirrored, as in training."""
    return "recipe" not in folder.files or config_of(folder).augment.flip


def _prepare_dropout(loaded: LoadedRun, options: Predict) -> None:
    """Set the rates of the options. Raises a usage error where no dropout would be active."""
    classifier, size = loaded.classifier, loaded.maker.preprocessing
    if options.enable_dropout is not None:
        set_dropout_(classifier.head, options.enable_dropout)
    example = torch.zeros(1, 3, size.height_px, size.width_px)
    require_dropout(classifier, classifier.backbone, options.mc_scope, example)


def _ood_score(folder: RunFolder, method: str) -> OodScore | None:
    """Fit the score that detects out-of-distribution pictures; None without one."""
    if method == "none":
        return None
    reference, validation = folder.load_reference(), folder.load_validation()
    if reference is None or validation is None:
        if method == "auto":
            return None
        raise UserError(
            f"--ood {method}: {folder.path} holds no features of its training pictures",
            "it was written by an older release",
            "train it again, or leave --ood out",
        )
    with understood(folder.path):
        if "folds" in validation:  # the reference is of the other folds
            first = validation["folds"] == 0
            validation = {name: validation[name][first] for name in ("features", "logits")}
        features = (reference["features"], validation["features"])
        if any(rows.ndim != 2 or not rows.isfinite().all() for rows in features):
            raise ValueError("the features are not finite")
        return fit_ood_score(
            "knn" if method == "auto" else method,
            (features[0].double().numpy(), reference["labels"].numpy()),
            (features[1].double().numpy(), validation["logits"].double().numpy()),
        )
