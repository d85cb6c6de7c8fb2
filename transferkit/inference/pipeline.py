"""The pipeline of every prediction: files → views → features → logits → probabilities.

A sample is one view of a picture, one dropout mask, one member; all three may vary together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.config import Predict
from transferkit.data.decode import DecodeError
from transferkit.data.loader import ViewMaker, ahead
from transferkit.events import Progress, Show, silent
from transferkit.inference.calibration import softmax
from transferkit.inference.dropout import head_samples, network_samples, picture_key
from transferkit.inference.members import Extractor, Member
from transferkit.inference.predict import head_logits
from transferkit.inference.uncertainty import Uncertainty, uncertainty_of

Floats = NDArray[np.float64]
Value = TypeVar("Value")

BATCH = 64
"""Default batch size."""


@dataclass(frozen=True)
class Picture:
    """A file and its views (V, 3, H, W) uint8, one array per extractor; none if unreadable."""

    file: Path
    views: tuple[np.ndarray, ...]
    error: str = ""


@dataclass(frozen=True)
class PictureBatch:
    """Consecutive files. features: (N, V, D) of N readable ones, per extractor; () if N is 0."""

    pictures: list[Picture]
    features: tuple[Tensor, ...]

    @property
    def readable(self) -> list[Picture]:
        """The N pictures that could be decoded."""
        return [picture for picture in self.pictures if picture.views]

    def per_file(self, values: Iterable[Value]) -> list[Value | None]:
        """Spread N values of the readable pictures over all files, None for the others."""
        left = iter(values)
        return [next(left) if picture.views else None for picture in self.pictures]


@dataclass(frozen=True)
class Prediction:
    """The members' prediction for the N readable pictures of a batch.

    probabilities: (N, S, K), `uncertainty` is of these. features: (N, D), of the clean views in the
    first member. ood: (N,), see `OodScore`. keys: N hashes of the pixels.
    """

    probabilities: Floats
    uncertainty: Uncertainty
    features: Tensor
    ood: Floats | None = None
    keys: tuple[int, ...] = ()

    @property
    def first_classes(self) -> NDArray[np.int64]:
        """The most likely class of each picture, (N,)."""
        return self.uncertainty.mean.argmax(axis=1)


def predictions(
    members: Sequence[Member], files: Sequence[Path], options: Predict, show: Show = silent
) -> Iterator[tuple[PictureBatch, Prediction | None]]:
    """Yield the files in batches, in order; None for a batch without readable files."""
    for batch in batches(members, files, options.batch_size, max(options.tta, 1), show):
        yield batch, predicted(members, batch, options) if batch.features else None


def batches(
    extractors: Sequence[Extractor],
    files: Sequence[Path],
    size: int,
    num_views: int = 1,
    show: Show = silent,
) -> Iterator[PictureBatch]:
    """Decode files ahead and run the backbones on `size` files at a time, in order.

    Extractors with the same preprocessing share the views. show: gets the progress.
    """

    def decode(file: Path) -> Picture:
        views: dict[ViewMaker, np.ndarray] = {}
        try:
            for maker in (extractor.maker for extractor in extractors):
                if maker not in views:
                    # every picture is number 0: its views depend only on the picture
                    views[maker] = maker.readable_views(file, 0, range(num_views))
        except (DecodeError, OSError) as error:
            return Picture(file, (), str(error))
        return Picture(file, tuple(views[extractor.maker] for extractor in extractors))

    done = 0
    decoded = ahead(decode, files)
    while pictures := list(islice(decoded, size)):
        readable = [picture for picture in pictures if picture.views]
        numbered = enumerate(extractors if readable else ())
        yield PictureBatch(
            pictures, tuple(extracted(each, views_of(readable, n), size) for n, each in numbered)
        )
        done += len(pictures)
        show(Progress("pictures", done, len(files)))


def views_of(readable: Sequence[Picture], number: int) -> Tensor:
    """Return the views (N, V, 3, H, W) that extractor `number` gets of readable pictures."""
    return torch.from_numpy(np.stack([picture.views[number] for picture in readable]))


def extracted(extractor: Extractor, views: Tensor, size: int) -> Tensor:
    """Return features (N, V, D) of views (N, V, 3, H, W), computed `size` views at a time."""
    features = [extractor.engine.run(part) for part in views.flatten(0, 1).split(size)]
    return torch.cat(features).unflatten(0, views.shape[:2])


def predicted(members: Sequence[Member], batch: PictureBatch, options: Predict) -> Prediction:
    """Predict the readable pictures of a batch, N >= 1."""
    readable = batch.readable
    samples, scores = [], []
    for number, (member, features) in enumerate(zip(members, batch.features, strict=True)):
        views = views_of(readable, number)
        logits = logits_of(member, views.flatten(0, 1), features.flatten(0, 1), options)
        probabilities = probabilities_of(member, logits, options)  # (N * V, T, K)
        samples.append(probabilities.reshape(len(readable), -1, probabilities.shape[2]))
        if member.ood is not None:
            clean = features[:, 0]  # (N, D)
            raw = head_logits(member.loaded.classifier, clean).double().numpy()
            scores.append(member.ood(clean.double().numpy(), raw))
    every = np.concatenate(samples, axis=1)
    return Prediction(
        every,
        uncertainty_of(every),
        batch.features[0][:, 0],
        np.mean(scores, axis=0) if scores else None,
        tuple(picture_key(picture.views[0][0]) for picture in readable),
    )


def logits_of(member: Member, views: Tensor, features: Tensor, options: Predict) -> Tensor:
    """Return logits (M, T, K) of M views (M, 3, H, W) with features (M, D).

    T: one pass without dropout, or `mc_dropout` passes with different masks.
    """
    classifier, count = member.loaded.classifier, options.mc_dropout
    if not count:
        return head_logits(classifier, features)[:, None]
    keys = [picture_key(view) for view in views.numpy()]
    if options.mc_scope == "head":
        return head_samples(classifier.head, features, keys, count, options.seed)
    return network_samples(classifier, views, keys, count, options.seed)


def probabilities_of(member: Member, logits: Tensor, options: Predict) -> Floats:
    """Return probabilities (..., K) of logits (..., K), in the order of the first member."""
    temperature = member.loaded.temperature if options.temperature else 1.0
    return softmax(logits.numpy()[..., member.order], temperature)
