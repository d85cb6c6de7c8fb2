"""What a run keeps of its first solve, so that it can be extended without its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transferkit.closed_form.sums import Sums
from transferkit.data.index import DatasetIndex
from transferkit.data.preprocessing import Preprocessing
from transferkit.data.reading import reading_from
from transferkit.errors import UserError
from transferkit.files.foreign_files import ODD
from transferkit.runs.folder import open_run
from transferkit.training.depth_features import KnownRows
from transferkit.training.run import Run
from transferkit.training.solve_features import Seen


@dataclass(frozen=True)
class KeptSolve:
    """Pictures by their features (n, D), and, where there were more, sums over all training ones.

    index: these pictures; digest: of what has read them. widths: columns of each depth.
    """

    index: DatasetIndex
    features: Tensor
    widths: tuple[int, ...]
    digest: str
    sums: Sums | None


def keep_solve(run: Run, seen: Seen) -> None:
    """Write down what a solve has seen."""
    index, positions, features = run.parts.index, seen.positions, seen.problem.features
    if index.folds is None:
        positions = np.concatenate([positions, run.material.val])
        features = torch.cat([features, seen.val_features])
    tensors = {
        "features": features,
        "labels": torch.from_numpy(index.labels[positions]),
        "sizes": torch.from_numpy(index.sizes[positions]),
    }
    if index.groups is not None:
        tensors["groups"] = torch.from_numpy(index.groups[positions])
    if seen.problem.sums is not None:
        tensors |= {f"sums.{k}": v for k, v in seen.problem.sums.packed().items()}
    description = {
        "digest": seen.digest,
        "widths": [depth.columns for depth in seen.depths],
        "classes": list(index.classes),
        "paths": [str(index.file(int(position))) for position in positions],
        "splits": index.splits[positions].tolist(),
        "digests": [index.digests[position] for position in positions],
    }
    run.folder.save_solve(tensors)
    run.folder.write_json("solve", description)


def read_kept(path: Path) -> KeptSolve:
    """Read what the run at a path has kept. Raises UserError where it kept nothing."""
    folder = open_run(path)
    tensors, known = folder.load_solve(), folder.read_json("solve")
    if tensors is None or known is None:
        what = f"{path} keeps no solve that could be extended"
        remedy = "train it with a plan that begins with one: transferkit finetune DATA"
        raise UserError(what, "", f"{remedy} --stages solve")
    try:
        count = len(known["paths"])
        packed = {k.removeprefix("sums."): v for k, v in tensors.items() if k.startswith("sums.")}
        index = DatasetIndex(
            root=path.absolute(),
            classes=tuple(known["classes"]),
            paths=tuple(known["paths"]),
            labels=tensors["labels"].numpy(),
            splits=np.array(known["splits"], dtype="<U5"),
            digests=tuple(known["digests"]),
            sizes=tensors["sizes"].numpy(),
            dhashes=np.zeros(count, dtype=np.uint64),
            unreadable=(),
            warnings=(),
            reading=reading_from(folder.read_description()),
            groups=None if "groups" not in tensors else tensors["groups"].numpy(),
        )
        sums = Sums.unpacked(packed) if packed else None
        features = tensors["features"]
        widths = tuple(known.get("widths", [features.shape[1]]))  # none in earlier releases
        return KeptSolve(index, features, widths, str(known["digest"]), sums)
    except ODD as error:
        raise UserError(f"cannot read what {path} keeps of its solve", str(error)) from error


def preprocessing_of(path: Path) -> Preprocessing:
    """Return how the finished run at a path sees pictures."""
    return Preprocessing.from_dict(open_run(path).read_description()["preprocessing"])


def extended(
    runs: Sequence[Path], more: DatasetIndex | None
) -> tuple[DatasetIndex, KnownRows, list[str]]:
    """Put together the pictures of runs and new ones: an index, what is known of it, and notices.

    Classes keep their order; new ones come after. A picture that is there twice counts once.
    Raises UserError where runs cannot be put together.
    """
    kept = [read_kept(path) for path in runs]
    if len({each.digest for each in kept}) > 1:
        what = "these runs see pictures differently: backbone, weights, framing or depths"
        raise UserError(what, ", ".join(map(str, runs)), "merge runs of the same options")
    indexes = [each.index for each in kept] + ([more] if more else [])
    classes = tuple(dict.fromkeys(name for index in indexes for name in index.classes))
    rows: dict[int, Tensor] = {}
    sums, summed, parts, notices = None, set[int](), [], []
    start, there = 0, set[str]()
    for number, index in enumerate(indexes):
        place = [classes.index(name) for name in index.classes]
        new = np.array([digest not in there for digest in index.digests], dtype=bool)
        there |= set(index.digests)
        if not new.all():
            notices.append(f"{(~new).sum()} pictures are there already, and count once")
        parts.append(part := some_of(index, new, np.array(place)))
        positions = start + np.arange(len(part))
        start += len(part)
        if number == len(kept):
            continue
        rows |= dict(zip(positions.tolist(), kept[number].features[new], strict=True))
        if (own := kept[number].sums) is not None:
            if not new.all():
                what = f"pictures of {runs[number]} are in another of the runs, too"
                raise UserError(what, "its sums cannot tell them apart", "leave it out")
            mapped = own.of_classes(place, len(classes))
            sums = mapped if sums is None else sums + mapped
            summed |= set(positions[part.splits == "train"].tolist())
    whole = replace(
        parts[0],
        classes=classes,
        paths=tuple(path for part in parts for path in part.paths),
        labels=np.concatenate([part.labels for part in parts]),
        splits=np.concatenate([part.splits for part in parts]),
        digests=tuple(digest for part in parts for digest in part.digests),
        sizes=np.concatenate([part.sizes for part in parts]),
        dhashes=np.concatenate([part.dhashes for part in parts]),
        groups=joined_groups(parts),
    )
    return whole, KnownRows(kept[0].digest, rows, None, sums, frozenset(summed)), notices


def joined_groups(parts: Sequence[DatasetIndex]) -> np.ndarray | None:
    """Return the groups of the pictures of all parts, of each part its own; None without any."""
    if all(part.groups is None for part in parts):
        return None
    found, start = [], 0
    for part in parts:
        own = np.arange(len(part)) if part.groups is None else part.groups
        found.append(start + own)
        start += int(own.max(initial=-1)) + 1
    return np.concatenate(found)


def some_of(index: DatasetIndex, wanted: np.ndarray, place: np.ndarray) -> DatasetIndex:
    """Return the wanted pictures of an index, label k as `place[k]`, with absolute paths."""
    positions = np.flatnonzero(wanted)
    return replace(
        index,
        paths=tuple(str(index.file(int(position))) for position in positions),
        labels=place[index.labels[positions]],
        splits=index.splits[positions],
        digests=tuple(index.digests[position] for position in positions),
        sizes=index.sizes[positions],
        dhashes=index.dhashes[positions],
        groups=None if index.groups is None else index.groups[positions],
    )
