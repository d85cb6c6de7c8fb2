"""Command-line options made from the table of options, and what was typed as a configuration."""

import csv
import inspect as signatures
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from transferkit.config import Config, OptionField, option_fields, words_beside_a_number
from transferkit.config.data import Data
from transferkit.config.predict import SECTION
from transferkit.errors import usage_error

PRETRAINING_READS = ("pretraining", "backbone", "optimizer", "schedule", "clipping", "device")
"""Sections whose options `pretrain` takes, and single options beside them."""
PRETRAINING_READS_ALSO = (
    *("data.strict", "data.background", "data.max_pixels", "data.depth_range", "data.bands"),
    *("augment.flip", "training.seed"),
)
PRETRAINING_HAS_OWN = (
    *("backbone.pretrained", "backbone.from_run", "backbone.reuse_blocks"),
    *("device.engine", "device.strategy", "device.compile"),
)


def option_parameter(item: OptionField) -> signatures.Parameter:
    """Make a command-line option from a row of the table; unset is None."""
    kind: Any = item.annotation
    words = words_beside_a_number(kind)
    if get_origin(kind) is tuple:
        kind = list[str]
    elif words:
        kind = str
    elif type(None) in get_args(kind) and get_origin(kind) is not Literal:
        kind = next(a for a in get_args(kind) if a is not type(None))
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    option = typer.Option(
        item.option.flag, help=item.option.help, show_default=False, metavar=_metavar(item, words)
    )
    return signatures.Parameter(
        item.key.replace(".", "__"),
        signatures.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _metavar(item: OptionField, words: tuple[str, ...]) -> str | None:
    """Return how the help shows a list, or words beside a number; None: as typer shows it."""
    if words:
        return f"<{'|'.join(('number', *words))}>"
    if get_origin(item.annotation) is not tuple:
        return None
    kind = get_args(item.annotation)[0]
    if get_origin(kind) is Literal:
        return f"<{'|'.join(get_args(kind))},...>"
    return f"<{(get_args(kind) or (kind,))[0].__name__},...>"


def with_config_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of training but the keys `without`, in place of its **flags."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        wanted = (i for i in option_fields() if _finetunes(i) and i.key not in without)
        return _signed(command, wanted)

    return add


def with_pretraining_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of pretraining, in place of its **flags."""
    wanted = [item for item in option_fields() if pretrains(item.key)]
    wanted.sort(key=lambda item: not item.key.startswith("pretraining."))  # its own come first
    return _signed(command, wanted)


def pretrains(key: str) -> bool:
    """Whether `pretrain` reads an option."""
    reads = key.split(".")[0] in PRETRAINING_READS or key in PRETRAINING_READS_ALSO
    return reads and key not in PRETRAINING_HAS_OWN


def with_predict_options(
    *without: str, more: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a finished run, but those `without`, in place of **flags.

    more: keys of further options.
    """
    unwanted = {f"{SECTION}.{name}" for name in without}
    keys = [i.key for i in option_fields() if _predicts(i) and i.key not in unwanted]
    return with_options(*keys, "data.max_pixels", *more)


FEATURES = (
    *("data.manifest", "data.allow_outside", "data.corrections", "data.group_by"),
    "data.val_fraction",
    *("data.exclude", "data.strict", "data.background", "data.max_pixels", "data.depth_range"),
    *("data.bands", "backbone.name", "backbone.weights", "backbone.image_size", "backbone.crop"),
    *("backbone.crop_share", "solve.depths", "solve.mirror", "training.seed", "cache.enabled"),
    *("cache.dir", "device.accelerator", "device.engine"),
)
"""Keys of what says how features of a data set's pictures are read, without training."""


def with_options(*keys: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these keys in place of its **flags."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        return _signed(command, (item for item in option_fields() if item.key in keys))

    return add


def take_data(flags: dict[str, Any]) -> tuple[Data, int | None]:
    """Take what was typed of the pictures out of the flags, checked; and the limit of pixels, None
    where none was typed.
    """
    from transferkit.recipes.reading import validate

    typed = {name: flags.pop(name) for name in list(flags) if name.startswith("data__")}
    found = validate(build_raw(None, None, None, None, typed)).data
    return found, None if typed.get("data__max_pixels") is None else found.max_pixels


def require_read(sets: Iterable[str]) -> None:
    """Refuse a `--set KEY=VALUE` whose key `pretrain` does not read."""
    known = {item.key for item in option_fields()}
    for pair in sets:
        key = pair.partition("=")[0].strip()
        if key in known and not pretrains(key):
            what = f"--set {pair}: {key} has no effect on pretraining"
            raise usage_error(what, "", "`transferkit pretrain --help-all` lists what has")


def _finetunes(item: OptionField) -> bool:
    return item.key.split(".")[0] not in (SECTION, "pretraining")


def _predicts(item: OptionField) -> bool:
    return item.key.startswith(f"{SECTION}.")


def _signed(command: Callable[..., None], wanted: Iterable[OptionField]) -> Callable[..., None]:
    """Give a command the wanted options beside its own parameters, in place of its **flags."""
    own = [
        parameter.replace(kind=signatures.Parameter.KEYWORD_ONLY)
        for parameter in signatures.signature(command).parameters.values()
        if parameter.kind is not signatures.Parameter.VAR_KEYWORD
    ]
    every = own + [option_parameter(item) for item in wanted]
    command.__signature__ = signatures.Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in every}
    return command


def build_config(
    data: Path | None,
    recipe: str | None,
    sets: list[str] | None,
    stages: str | None,
    flags: dict[str, Any],
) -> Config:
    """Turn what was typed into one checked configuration; flags win over the recipe."""
    from transferkit.recipes.reading import validate

    return validate(build_raw(data, recipe, sets, stages, flags))


def build_raw(
    data: Path | None,
    recipe: str | None,
    sets: list[str] | None,
    stages: str | None,
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Merge what was typed over the recipe, as nested dicts, unchecked."""
    from transferkit.recipes.reading import find_recipe, merged, read_recipe
    from transferkit.recipes.typed import parse_stages

    types = {item.key: item.annotation for item in option_fields()}
    given: dict[str, Any] = {}
    for name, value in flags.items():
        key = name.replace("__", ".")
        if value is not None:
            numbers = get_args(types[key])[:1] != (str,)
            given[key] = split_list(value, numbers) if isinstance(value, list) else value
            if words_beside_a_number(types[key]) and NUMBER.fullmatch(value):
                given[key] = int(value) if value.isdigit() else float(value)
    if data is not None:
        given["data.path"] = data
    if stages is not None:
        given["stages"] = parse_stages(stages)
    raw = read_recipe(find_recipe(recipe)) if recipe else None
    return merged(raw, sets or (), given)


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def split_list(texts: list[str], numbers: bool) -> list[int | float | str]:
    """Read `256,64`, `0.2,0.5` or `cat,dog`, given once or repeated; what is no number is kept.

    A part with a comma of its own stands in double quotes, as in a CSV table.
    """
    cells = csv.reader((text.strip() for text in texts), skipinitialspace=True)
    parts = [part.strip() for row in cells for part in row if part.strip()]
    found: list[int | float | str] = []
    for part in parts:
        number = numbers and NUMBER.fullmatch(part)
        found.append((int(part) if part.isdigit() else float(part)) if number else part)
    return found


DATA_HELP = "Folder with CLASS/ or train/CLASS/ folders, or shards: 'a-{000..127}.tar'."

Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="Recipe: a file, the name of a shipped one, or a run folder."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of a recipe; repeatable."),
]
Stages = Annotated[
    str | None,
    typer.Option(
        "--stages",
        help='Training plan, e.g. "head:20@3e-3, 1:8@1e-3~0.5, all:4?"; see explain stages.',
    ),
]


Out = Annotated[Path | None, typer.Option("--out", help="Run folder to create [runs/TIME-NAME].")]
AllowOutside = Annotated[
    bool,
    typer.Option("--allow-outside", help="Read files that the manifest names outside its folder."),
]
Select = Annotated[
    int | None,
    typer.Option("--select", min=1, help="Number of suspects [as many as are probably wrong]."),
]
Corrections = Annotated[
    Path | None,
    typer.Option("--corrections", help="CSV with columns path,label that corrects labels of DATA."),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Continue an interrupted run; DATA only if it has moved."),
]


def require_manifest(allow_outside: bool, manifest: Path | None) -> None:
    """Refuse `--allow-outside` where there is no manifest."""
    if allow_outside and manifest is None:
        raise usage_error("--allow-outside has no effect without --manifest", "", "leave it out")


def require_alone(resume: Path | None, given: Iterable[Any]) -> None:
    """Refuse whatever is given beside --resume."""
    if resume is not None and any(value not in (None, []) for value in given):
        raise usage_error(
            "--resume takes no other option",
            "the run continues exactly as it was started; DATA says where its pictures lie now",
            f"for other options start a new run: --recipe {resume}",
        )


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were typed, under their keys."""
    return {n.replace("__", "."): value for n, value in flags.items() if value is not None}


ALONE = {"--mc-dropout": (r"[+-]?\d+", "30"), "--mirror": ("auto|on|off", "on")}
"""Options that may stand without a value: what is one, and what they mean without it."""


def with_values(arguments: list[str]) -> list[str]:
    """Give the options of `ALONE` their usual value where none follows."""
    found: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        found.append(argument)
        value, usual = ALONE.get(argument, ("", ""))
        if usual and not re.fullmatch(value, following):
            found.append(usual)
    return found
