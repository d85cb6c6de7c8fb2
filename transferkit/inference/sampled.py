"""What a run says of its validation pictures when it samples, and the temperature that fits that.

The mean of samples is less certain than one pass, so that the temperature of the deterministic
logits makes it too unsure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.config import Predict
from transferkit.data.shards import root_of
from transferkit.errors import UserError, usage_error
from transferkit.files.foreign_files import understood
from transferkit.inference.calibration import fit_temperature
from transferkit.inference.dropout import head_samples
from transferkit.inference.members import Member
from transferkit.inference.pipeline import batches, logits_of, probabilities_of, views_of
from transferkit.recipes.reading import config_of
from transferkit.runs.life import moved

Floats = NDArray[np.float64]
WAYS = ("mc_dropout", "mc_scope", "enable_dropout", "tta", "seed")
"""The options that say how is sampled."""


def goes_through_pictures(options: Predict) -> bool:
    """Whether samples come from the pictures, not from stored features."""
    return options.tta > 1 or bool(options.mc_dropout and options.mc_scope == "all")


def decides(options: Predict) -> bool:
    """Whether thresholds are wanted, for which the validation pictures are looked at."""
    return options.target_accuracy is not None or options.coverage is not None


def calibrated(members: Sequence[Member], options: Predict, measure: bool) -> list[Member]:
    """Return the members with the temperature that fits the mean of what they sample together.

    measure: the validation pictures may be looked at for it, where features do not say it. Members
    that hold no validation, or that of different pictures, stay as they are.
    """
    found = list(members)
    sampling = options.mc_dropout or options.tta > 1 or len(found) > 1
    if not (sampling and options.temperature):
        return found
    try:
        logits, labels = validation_logits(found, options, measure)
    except UserError:
        return found
    scaled = [each / m.loaded.temperature for each, m in zip(logits, found, strict=True)]
    factor = fit_temperature(np.concatenate(scaled, axis=1), labels)
    temperatures = [member.loaded.temperature * factor for member in found]
    return [
        replace(member, loaded=replace(member.loaded, temperature=temperature))
        for member, temperature in zip(found, temperatures, strict=True)
    ]


def validation_samples(
    members: Sequence[Member], options: Predict
) -> tuple[Floats, NDArray[np.int64]]:
    """Return probabilities (N, S, K) of the validation pictures and their labels (N,).

    Raises UserError where a member has none, or where the members of an ensemble were validated on
    different pictures.
    """
    logits, labels = validation_logits(members, options, True)
    plain = [
        replace(member, order=np.arange(each.shape[2]))
        for member, each in zip(members, logits, strict=True)
    ]
    samples = [
        probabilities_of(m, torch.from_numpy(each), options)
        for m, each in zip(plain, logits, strict=True)
    ]
    return np.concatenate(samples, axis=1), labels


def validation_logits(
    members: Sequence[Member], options: Predict, measure: bool
) -> tuple[list[Floats], NDArray[np.int64]]:
    """Return each member's logits (N, S, K), in the order of the first's classes, and labels (N,).

    measure: see `calibrated`. Raises UserError as `validation_samples`.
    """
    found, labels = [], None
    held = [stored_validation(member) for member in members]
    plain = not (options.mc_dropout or options.tta > 1)
    if plain and all("left_out_logits" in each for each in held):  # few validation pictures
        names = ("logits", "labels")
        held = [{name: each[f"left_out_{name}"] for name in names} for each in held]
    for member, stored in zip(members, held, strict=True):
        position = np.argsort(member.order)  # of the member's classes among the first member's
        with understood(member.path):
            member_labels = position[stored["labels"].numpy()]
        if labels is not None and not np.array_equal(member_labels, labels):
            what = f"{member.path} and {members[0].path} were validated on different pictures"
            remedy = "thresholds of an ensemble need runs on the same data with the same split"
            raise usage_error(what, remedy=remedy)
        labels = member_labels
        if not plain and "folds" in stored and (options.mc_dropout or options.tta > 1):
            what = (
                f"{member.path} was judged by folds, and has seen all pictures that it would sample"
            )
            raise UserError(what, "", "train it without --folds, or decide without samples")
        if goes_through_pictures(options):
            logits = of_pictures(member, options, stored["logits"], measure)
        elif options.mc_dropout:
            features, keys = stored["features"].float(), range(len(labels))
            head = member.loaded.classifier.head
            logits = head_samples(head, features, keys, options.mc_dropout, options.seed)
        else:
            logits = stored["logits"][:, None]
        found.append(logits.double().numpy()[..., member.order])
    assert labels is not None
    return found, labels


def stored_validation(member: Member) -> dict[str, Tensor]:
    """Return what a member keeps of its validation. Raises UserError where it keeps nothing."""
    stored = member.folder.load_validation() if member.folder else None
    if stored is None:
        what = f"{member.path} holds no validation features to choose thresholds on"
        raise UserError(what, remedy="train it again with this release")
    return stored


def of_pictures(member: Member, options: Predict, plain: Tensor, measure: bool) -> Tensor:
    """Return logits (N, S, K) of the validation pictures, sampled once and kept in the run folder.

    plain: (N, K), the run's own. Raises UserError where a picture is gone, or not to be looked at.
    """
    folder = member.folder
    assert folder is not None
    way = [asdict(options)[name] for name in WAYS]
    text = repr(way).encode() + plain.numpy().tobytes()
    name = hashlib.blake2b(text, digest_size=8).hexdigest()
    if (kept := folder.load_sampled(name)) is not None:
        return kept["logits"]
    source = moved(config_of(folder), None, None, folder.path).data
    paths = [row["path"] for row in folder.read_predictions()]
    place = source.path or (source.manifest and source.manifest.parent)
    if not measure or place is None or len(paths) != len(plain):
        raise UserError(f"{folder.path}: what it samples of validation is not known")
    root = place if source.manifest else root_of(place)
    found = []
    for batch in batches(
        [member], [root / path for path in paths], options.batch_size, max(options.tta, 1)
    ):
        for picture in batch.pictures:
            if not picture.views:
                what = f"{picture.file} can no longer be read: {picture.error}"
                raise UserError(what, "thresholds need the validation pictures", "restore it")
        features = batch.features[0].flatten(0, 1)
        logits = logits_of(member, views_of(batch.pictures, 0).flatten(0, 1), features, options)
        found.append(logits.reshape(len(batch.pictures), -1, logits.shape[2]))
    sampled = torch.cat(found)
    folder.save_sampled(name, {"logits": sampled})
    return sampled
