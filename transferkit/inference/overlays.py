"""Overlays of `predict --saliency`: one picture file for every picture that was predicted."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transferkit.errors import usage_error
from transferkit.files.atomic_write import make_inside, write_atomically
from transferkit.inference.members import Member
from transferkit.inference.pipeline import Picture
from transferkit.inference.saliency import Run, choose_runs, overlay, saliency

SUFFIX = ".png"
LONGEST_NAME = 240  # bytes; file systems take 255, and a temporary file's name is longer


@dataclass(frozen=True)
class Overlays:
    """The folder of overlays. root: common folder of all pictures; paths below it are kept."""

    folder: Path
    root: Path
    runs: tuple[Run, ...]


def open_overlays(folder: Path, members: Sequence[Member], files: Iterable[Path]) -> Overlays:
    """Prepare overlays for `files`. Raises a usage error for a model without maps, or where they
    would lie among the pictures.
    """
    inside = os.path.join(os.path.abspath(folder), "")
    parents = dict.fromkeys(os.path.dirname(os.path.abspath(file)) for file in files)
    if any(os.path.join(parent, "").startswith(inside) for parent in parents):
        what = f"--saliency {folder} holds pictures to classify"
        raise usage_error(what, "the overlays would lie among them", "name another folder")
    root = Path(os.path.commonpath(parents)) if parents else Path()
    return Overlays(folder, root, tuple(choose_runs(members)))


def overlay_path(overlays: Overlays, file: Path) -> Path:
    """Return where the overlay of a picture goes: its path below the common folder, and .png.

    The whole name stays, so that names stay distinct: a.jpg.png, a.png.png.
    """
    inside = Path(os.path.relpath(os.path.abspath(file), overlays.root))
    name = inside.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
        name = f"{name[:40]}-{digest}"
    return overlays.folder / inside.parent / f"{name}{SUFFIX}"


def write_overlays(
    overlays: Overlays,
    members: Sequence[Member],
    pictures: Sequence[Picture],
    targets: NDArray[np.int64],
) -> list[Path]:
    """Write the overlay of every readable picture of a batch; return their paths.

    targets: (N,) the classes to explain. Raises OSError.
    """
    evidence = saliency(members, overlays.runs, pictures, targets)
    overlays.folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture, map_ in zip(pictures, evidence, strict=True):
        path = overlay_path(overlays, picture.file)
        make_inside(overlays.folder, path.parent)
        image: Image.Image = overlay(picture.views[0][0], map_)
        write_atomically(path, lambda file, image=image: image.save(file, format="PNG"))  # type: ignore[misc]
        paths.append(path)
    return paths
