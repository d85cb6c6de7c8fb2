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
        Option("--manifest", "CSV with columns path,label[,split] in place of folders."),
    ] = None
    allow_outside: Annotated[
        bool,
        Option(
            "--allow-outside/--no-allow-outside",
            "Read pictures that a manifest names outside of its folder (or of DATA).",
        ),
    ] = False
    val_fraction: Annotated[
        float,
        Gt(0),
        Lt(1),
        Option("--val-fraction", "Share held out for validation when DATA has no val/ folder."),
    ] = 0.2
    exclude: Annotated[
        tuple[str, ...], Option("--exclude", "Classes to leave out, separated by commas.")
    ] = ()
    strict: Annotated[
        bool, Option("--strict/--no-strict", "Stop on an unreadable file; else it is left out.")
    ] = False
    background: Annotated[
        str, Option("--background", "Colour behind transparent pictures: a name or #rrggbb.")
    ] = "white"
    max_pixels: Annotated[
        int, Ge(1), Option("--max-pixels", "Pictures with more pixels than this are not decoded.")
    ] = DEFAULT_MAX_PIXELS
    depth_range: Annotated[
        tuple[float, ...],
        Option(
            "--depth-range",
            "LOW,HIGH: the values that are black and white in deeper than 8-bit files [measured].",
        ),
    ] = ()
    bands: Annotated[
        tuple[Annotated[int, Ge(1)], ...],
        Option("--bands", "Of pictures with more than 3 bands: those for red,green,blue [1,2,3]."),
    ] = ()
    normalize: Annotated[
        Literal["backbone", "dataset", "none"],
        Option(
            "--normalize",
            "Mean and deviation of the input: the backbone's, measured on DATA, or as they are.",
        ),
    ] = "backbone"
    balance: Annotated[
        Literal["none", "sampler", "loss"],
        Option(
            "--balance", "Against class imbalance: draw rare classes more often, or weigh them."
        ),
    ] = "none"


@dataclass(frozen=True)
class Augmentation(Section):
    """How training pictures vary."""

    level: Annotated[
        Literal["none", "light", "medium", "strong"],
        Option("--augment", "How strongly training pictures are varied."),
    ] = "strong"
    flip: Annotated[
        bool, Option("--flip/--no-flip", "Mirror training pictures; not for text, digits, sides.")
    ] = True
    views: Annotated[
        int | None,
        Ge(0),
        Le(64),
        Option(
            "--views",
            "Augmented views per picture beside the clean one [cached: 3 to 8; live: new].",
        ),
    ] = None
    mixup: Annotated[
        float, Ge(0), Option("--mixup", "Beta parameter of mixup; 0 is off, 0.2 is usual.")
    ] = 0.0
    cutmix: Annotated[
        float, Ge(0), Option("--cutmix", "Beta parameter of CutMix; 0 is off, 1 is usual.")
    ] = 0.0


@dataclass(frozen=True)
class Cache(Section):
    """Activations at the frozen boundary, computed once and kept on disk."""

    enabled: Annotated[
        bool, Option("--cache/--no-cache", "Compute frozen blocks once, or in every epoch.")
    ] = True
    budget: Annotated[
        str, Option("--cache-budget", "Most disk space for the run's cache, e.g. 500MB or 8GB.")
    ] = "8GB"
    dir: Annotated[
        Path | None, Option("--cache-dir", "Where caches lie [~/.cache/transferkit].")
    ] = None
    dtype: Annotated[
        Literal["float16", "float32"], Option("--cache-dtype", "Precision of cached activations.")
    ] = "float16"
