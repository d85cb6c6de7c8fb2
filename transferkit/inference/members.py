"""One run or several, ready to give samples of every picture's distribution over classes.

A sample is one view of the picture, one dropout mask, one run; all three may vary together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.backbones.engine import Engine
from transferkit.config import Predict
from transferkit.data.decode import DecodeError
from transferkit.data.loader import ViewMaker, ahead
from transferkit.errors import UserError, usage_error
from transferkit.files.foreign_files import understood
from transferkit.inference.calibration import softmax
from transferkit.inference.dropout import (
    head_samples,
    network_samples,
    picture_key,
    require_dropout,
    set_dropout_,
)
from transferkit.inference.ood import Unlikeness, fit_unlikeness
from transferkit.inference.predict import LoadedRun, head_logits, load_run, picture_engine
from transferkit.runs.folder import RunFolder

Floats = NDArray[np.float64]
TTA_LEVEL = "light"


@dataclass(frozen=True)
class Member:
    """A run that takes part. order: (K,) where the first run's classes are among its own."""

    folder: RunFolder
    loaded: LoadedRun
    maker: ViewMaker
    engine: Engine
    order: NDArray[np.int64]
    unlikeness: Unlikeness | None


@dataclass(frozen=True)
class Batch:
    """Readable pictures of a batch. probabilities: (N, S, K). features: (N, D) and logits (N, K)
    of the clean view in the first run. unlike: (N,), see `Unlikeness`. keys: N, of the pixels.
    """

    probabilities: Floats
    features: Tensor
    unlike: Floats | None
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """A file as pixels: per member (V, 3, H, W) uint8, or None and the reason."""

    file: Path
    views: tuple[np.ndarray, ...] | None
    reason: str = ""


def open_members(
    folders: Sequence[RunFolder],
    options: Predict,
    num_pictures: int,
    flip: bool,
    max_pixels: int | None = None,
) -> list[Member]:
    """Load runs and prepare what is sampled. Raises a usage error where nothing would vary, or
    where the runs do not know the same classes.

    flip: whether varied views may be mirrored. max_pixels: in place of the runs' own.
    """
    found: list[Member] = []
    for folder in folders:
        wanted = options.enable_dropout if options.mc_scope == "all" else None
        loaded = load_run(folder, wanted)
        classifier = loaded.classifier
        if options.mc_dropout:
            if options.enable_dropout is not None:
                set_dropout_(classifier.head, options.enable_dropout)
            size = loaded.maker.preprocessing
            example = torch.zeros(1, 3, size.height_px, size.width_px)
            require_dropout(classifier, classifier.backbone, options.mc_scope, example)
        classes = found[0].loaded.classes if found else loaded.classes
        if set(classes) != set(loaded.classes):
            raise usage_error(
                f"{folder.path} and {folders[0].path} do not know the same classes",
                f"only one of them knows: {', '.join(sorted(set(classes) ^ set(loaded.classes)))}",
                "an ensemble is made of runs on the same classes",
            )
        views = num_pictures * max(options.tta, 1)
        engine = picture_engine(
            classifier, loaded.maker, views, options.engine, torch.device("cpu")
        )
        maker = replace(loaded.maker, level=TTA_LEVEL, flip=flip, seed=options.seed)
        maker = maker.with_limit(max_pixels)
        order = np.array([loaded.classes.index(name) for name in classes])
        found.append(Member(folder, loaded, maker, engine, order, _unlikeness(folder, options.ood)))
    return found


def _unlikeness(folder: RunFolder, method: str) -> Unlikeness | None:
    """Prepare the score that tells unlike pictures; None without one."""
    if method == "none":
        return None
    reference, validation = folder.load_reference(), folder.load_validation()
    if reference is None or validation is None:
        if method == "auto":
            return None
        raise UserError(
            f"--ood {method}: {folder.path} keeps no features of its training pictures",
            "it was made by an older release",
            "train it again, or leave --ood out",
        )
    with understood(folder.path):
        features = (reference["features"], validation["features"])
        if any(kept.ndim != 2 or not kept.isfinite().all() for kept in features):
            raise ValueError("the features are no table of finite numbers")
        return fit_unlikeness(
            "knn" if method == "auto" else method,
            (features[0].double().numpy(), reference["labels"].numpy()),
            (features[1].double().numpy(), validation["logits"].double().numpy()),
        )


def read_files(members: Sequence[Member], files: Iterable[Path], num_views: int) -> Iterator[Read]:
    """Decode files ahead, in order; members with the same preprocessing share the views."""

    def read(file: Path) -> Read:
        made: dict[ViewMaker, np.ndarray] = {}
        try:
            for member in members:
                if member.maker not in made:
                    # every picture is number 0: its views depend on nothing but itself
                    made[member.maker] = member.maker.readable_views(file, 0, range(num_views))
        except (DecodeError, OSError) as error:
            return Read(file, None, str(error))
        return Read(file, tuple(made[member.maker] for member in members))

    yield from ahead(read, files)


def sample_batch(members: Sequence[Member], batch: Sequence[Read], options: Predict) -> Batch:
    """Sample the readable pictures of a batch, N >= 1; unreadable ones are left out."""
    readable = [read.views for read in batch if read.views is not None]
    keys = tuple(picture_key(views[0][0]) for views in readable)
    samples, unlike = [], []
    first: Tensor | None = None
    for number, member in enumerate(members):
        views = np.stack([views[number] for views in readable])  # (N, V, 3, H, W)
        count, num_views = views.shape[:2]
        images = torch.from_numpy(views.reshape(-1, *views.shape[2:]))  # (N * V, 3, H, W)
        # exported once for any size, but a batch of views is V times as large
        features = torch.cat([member.engine.run(part) for part in images.split(options.batch_size)])
        own_keys = [picture_key(view) for view in views.reshape(-1, *views.shape[2:])]
        logits = _logits(member, images, features, own_keys, options)  # (N * V, T, K)
        samples.append(_probabilities(member, logits, options).reshape(count, -1, logits.shape[2]))
        clean = features.view(count, num_views, -1)[:, 0]
        first = clean if first is None else first
        if member.unlikeness is not None:
            raw = head_logits(member.loaded.classifier, clean).double().numpy()
            unlike.append(member.unlikeness(clean.double().numpy(), raw))
    assert first is not None
    return Batch(
        np.concatenate(samples, axis=1),
        first,
        np.mean(unlike, axis=0) if unlike else None,
        keys,
    )


def _logits(
    member: Member, images: Tensor, features: Tensor, keys: Sequence[int], options: Predict
) -> Tensor:
    """Return logits (N, T, K) of T dropout masks, of one pass without."""
    classifier, count = member.loaded.classifier, options.mc_dropout
    if not count:
        return head_logits(classifier, features)[:, None]
    if options.mc_scope == "head":
        return head_samples(classifier.head, features, keys, count, options.seed)
    return network_samples(classifier, images, keys, count, options.seed)


def _probabilities(member: Member, logits: Tensor, options: Predict) -> Floats:
    temperature = member.loaded.temperature if options.temperature else 1.0
    return softmax(logits.numpy()[..., member.order], temperature)


def validation_samples(
    members: Sequence[Member], options: Predict
) -> tuple[Floats, NDArray[np.int64]]:
    """Return samples (N, S, K) of the validation pictures and their labels (N,), for thresholds.

    The head runs on the kept features. Raises UserError where a run keeps none, or where the runs
    of an ensemble were validated on different pictures.
    """
    found, labels = [], None
    for member in members:
        kept = member.folder.load_validation()
        if kept is None:
            raise UserError(
                f"{member.folder.path} keeps nothing of its validation to choose thresholds on",
                remedy="train it again with this release",
            )
        position = np.argsort(member.order)  # of its own classes among the first run's
        with understood(member.folder.path):
            own = position[kept["labels"].numpy()]
        if labels is not None and not np.array_equal(own, labels):
            raise usage_error(
                f"{member.folder.path} and {members[0].folder.path} were validated on different "
                "pictures",
                remedy="thresholds of an ensemble need runs on the same data with the same split",
            )
        labels = own
        if options.mc_dropout:
            features, keys = kept["features"].float(), range(len(own))
            head = member.loaded.classifier.head
            logits = head_samples(head, features, keys, options.mc_dropout, options.seed)
        else:
            logits = kept["logits"][:, None]
        found.append(_probabilities(member, logits, options))
    assert labels is not None
    return np.concatenate(found, axis=1), labels
