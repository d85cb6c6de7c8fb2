"""Options of the pictures: where they are, how they vary, where activations are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from transferkit.config.option import Option, Section

DEFAULT_MAX_PIXELS = 250_000_000
"""Telephones take 200 million; JPEG is decoded at a fraction of that."""


@dataclass(frozen=True)
class Data(Section):
    """Where the pictures are and how they are read. path: folder or shards, DATA when typed."""

    path: Path | None = None
    manifest: Annotated[
        Path | None,
        Option(
            "--manifest", "CSV with columns path,label[,split], instead of folders.", usual=True
        ),
    ] = None
    allow_outside: Annotated[
        bool,
        Option("--allow-outside/--no-allow-outside", "Read files outside the manifest's folder."),
    ] = False
    corrections: Annotated[
        Path | None,
        Option("--corrections", "CSV with columns path,label that corrects labels of DATA."),
    ] = None
    unlabeled: Annotated[
        Path | None,
        Option("--unlabeled", "Pictures for a first stage of pretraining [those of training]."),
    ] = None
    val_fraction: Annotated[
        float,
        Gt(0),
        Lt(1),
        Option("--val-fraction", "Fraction held out for validation if DATA has no val/ folder."),
    ] = 0.2
    group_by: Annotated[
        str,
        Option(
            "--group-by",
            "Keep groups in one split: folder, time:30s, similar, a column, a pattern.",
            usual=True,
        ),
    ] = ""
    folds: Annotated[
        int | None,
        Ge(2),
        Le(20),
        Option("--folds", "Judge every picture by a model that has not seen its fold, of so many."),
    ] = None
    exclude: Annotated[
        tuple[str, ...], Option("--exclude", "Classes to leave out, separated by commas.")
    ] = ()
    strict: Annotated[
        bool, Option("--strict/--no-strict", "Stop at an unreadable file instead of skipping it.")
    ] = False
    background: Annotated[
        str,
        Option("--background", "Background colour for transparent pictures: a name or #rrggbb."),
    ] = "white"
    max_pixels: Annotated[
        int,
        Ge(1),
        Option("--max-pixels", "Largest picture to decode; larger ones count as unreadable."),
    ] = DEFAULT_MAX_PIXELS
    depth_range: Annotated[
        tuple[float, ...],
        Option("--depth-range", "LOW,HIGH: black and white of more than 8 bits [measured]."),
    ] = ()
    bands: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Option("--bands", "Red, green and blue of pictures with more than three bands [1,2,3]."),
    ] = ()
    normalize: Annotated[
        Literal["backbone", "dataset", "none"],
        Option("--normalize", "Input mean and deviation: the backbone's, DATA's, or none."),
    ] = "backbone"
    balance: Annotated[
        Literal["none", "sampler", "loss"],
        Option(
            "--balance", "Class imbalance: oversample rare classes, or weight the loss.", usual=True
        ),
    ] = "none"


@dataclass(frozen=True)
class Augmentation(Section):
    """How training pictures vary."""

    level: Annotated[
        Literal["none", "light", "medium", "strong"],
        Option("--augment", "Strength of data augmentation.", usual=True),
    ] = "strong"
    flip: Annotated[
        bool, Option("--flip/--no-flip", "Mirror at random; not for text or digits.", usual=True)
    ] = True
    views: Annotated[
        int | None,
        Ge(0),
        Le(64),
        Option(
            "--views", "Augmented views per picture.", "3 to 8 if cached, else a new one per epoch"
        ),
    ] = None
    mixup: Annotated[
        float,
        Ge(0),
        Option("--mixup", "Mixup: parameter of its Beta distribution; 0 is off, 0.2 is typical."),
    ] = 0.0
    cutmix: Annotated[
        float,
        Ge(0),
        Option("--cutmix", "CutMix: parameter of its Beta distribution; 0 is off, 1 is typical."),
    ] = 0.0


@dataclass(frozen=True)
class Cache(Section):
    """Activations at the frozen boundary, computed once and kept on disk."""

    enabled: Annotated[
        bool,
        Option("--cache/--no-cache", "Compute frozen blocks once and cache their activations."),
    ] = True
    budget: Annotated[
        str, Option("--cache-budget", "Maximum disk space for the run's cache, e.g. 500MB or 8GB.")
    ] = "8GB"
    dir: Annotated[
        Path | None, Option("--cache-dir", "Folder of the caches.", "~/.cache/transferkit")
    ] = None
    dtype: Annotated[
        Literal["float16", "float32"], Option("--cache-dtype", "Precision of cached activations.")
    ] = "float16"
