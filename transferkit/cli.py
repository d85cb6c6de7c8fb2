"""The commands: parse, call one function, print. No logic.

The options of `finetune` and `plan` are made from the table of all options in
`transferkit.config`, so that flags, `--help` and recipes cannot drift apart.
"""

import inspect as signatures
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from transferkit import __version__, console, tables
from transferkit.config import Config, OptionField, option_fields
from transferkit.errors import UserError, usage_error

app = typer.Typer(
    name="transferkit",
    help="Transfer learning for image classification: frozen first, then progressively unfrozen.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer carries or depends on
PANELS = {
    "data": "Pictures",
    "backbone": "Backbone",
    "head": "New layers",
    "augment": "Augmentation",
    "cache": "Boundary cache",
    "training": "Training",
    "device": "Device",
}


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        console.print_lines([f"transferkit {__version__}"])
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Transfer learning for image classification: frozen first, then progressively unfrozen."""


def option_parameter(item: OptionField) -> signatures.Parameter:
    """Make a command-line option from a row of the table; unset is None."""
    kind: Any = item.annotation
    if get_origin(kind) is tuple:
        kind = list[str]
    elif type(None) in get_args(kind) and get_origin(kind) is not Literal:
        kind = next(a for a in get_args(kind) if a is not type(None))
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    default = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
    note = f" [{item.key}" + ("" if default in (None, "") else f", default {default}") + "]"
    section = item.key.split(".")[0]
    option = typer.Option(
        item.option.flag,
        help=item.option.help + note,
        show_default=False,
        rich_help_panel=PANELS[section],
    )
    return signatures.Parameter(
        item.key.replace(".", "__"),
        signatures.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def with_config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of the configuration, in place of its **flags."""
    own = [
        parameter.replace(kind=signatures.Parameter.KEYWORD_ONLY)
        for parameter in signatures.signature(command).parameters.values()
        if parameter.kind is not signatures.Parameter.VAR_KEYWORD
    ]
    every = own + [option_parameter(item) for item in option_fields()]
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
    from transferkit.recipes import find_recipe, load_config, parse_stages, read_recipe

    types = {item.key: item.annotation for item in option_fields()}
    given: dict[str, Any] = {}
    for name, value in flags.items():
        key = name.replace("__", ".")
        if value is not None:
            numbers = get_args(types[key])[:1] != (str,)
            given[key] = split_list(value, numbers) if isinstance(value, list) else value
    if data is not None:
        given["data.path"] = data
    if stages is not None:
        given["stages"] = parse_stages(stages)
    raw = read_recipe(find_recipe(recipe)) if recipe else None
    return load_config(raw, sets or (), given)


def split_list(texts: list[str], numbers: bool) -> list[int | str]:
    """Read `256,64` or `cat,dog`, given once or repeated. numbers: whole numbers become int."""
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    return [int(part) if numbers and part.isascii() and part.isdigit() else part for part in parts]


@contextmanager
def live_view(as_json: bool) -> Iterator[console.LiveView]:
    """Show events while work goes on."""
    with console.LiveView(as_json=as_json) as view:
        yield view


Recipe = Annotated[
    str | None, typer.Option("--recipe", help="A recipe: a file, a shipped name, or a run folder.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe; may be repeated."),
]
Stages = Annotated[
    str | None,
    typer.Option(
        "--stages", help='The plan: "head:20@3e-3, 1:8@1e-3~0.5, all:4?"; see the README.'
    ),
]


@app.command()
@with_config_options
def finetune(
    data: Annotated[Path | None, typer.Argument(help="Folder: train/CLASS/, or CLASS/.")] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    stages: Stages = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to make [runs/TIME-NAME].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue an interrupted run.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Train a classifier on a folder of labelled pictures."""
    given = [data, recipe, sets, stages, out, *flags.values()]
    if resume is not None and any(value not in (None, []) for value in given):
        raise usage_error(
            "--resume takes no other option",
            "the run continues exactly as it was started",
            f"for other options start a new run: --recipe {resume}",
        )
    config = None if resume else build_config(data, recipe, sets, stages, flags)
    with live_view(json) as view:
        from transferkit import finetune as verb

        if resume is not None:
            summary = verb.resume(resume, view.show)
        else:
            assert config is not None
            summary = verb.finetune(config, out, view.show)
    if json:
        console.print_json(summary.to_dict())
    else:
        console.closing_table(summary)


@app.command()
@with_config_options
def plan(
    data: Annotated[Path | None, typer.Argument(help="Folder: train/CLASS/, or CLASS/.")] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    stages: Stages = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Show what finetune would do: stages, rates per block, cache size, expected time."""
    config = build_config(data, recipe, sets, stages, flags)
    with live_view(json) as view:
        from transferkit import plan as verb

        rows, notices = verb.plan(config, view.show)
    if json:
        console.print_json({"stages": [vars(row) for row in rows], "notices": notices})
    else:
        console.plan_table(rows)
        console.print_lines(notices)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders, or patterns like 'a/*.jpg'."),
    ],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes named per picture.")] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rows to a .csv or .jsonl file.")
    ] = None,
    engine: Annotated[
        Literal["auto", "torch", "onnx"], typer.Option("--engine", help="What runs the model.")
    ] = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Classify pictures with a run's model."""
    if output is not None and output.suffix.lower() not in (".csv", ".jsonl"):
        raise usage_error(f"--output {output}: the name must end in .csv or .jsonl")
    with live_view(json or output is None) as view:
        from transferkit import predict as verb

        rows = list(verb.predict(run, images, top_k, engine, view.show))
        if output is not None:
            verb.write_rows(output, rows)
    if json:
        console.print_json({"predictions": rows, "output": output})
    elif output is None:
        tables.prediction_table(rows)
    else:
        console.print_lines([f"{len(rows)} rows written to {output}"])
    if rows and all(row["error"] for row in rows):
        if json:
            raise typer.Exit(1)  # the rows say why
        raise UserError("no picture could be read", rows[0]["error"])


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Argument(help="Folder with a folder per class.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV with columns path,label[,split].")
    ] = None,
    split: Annotated[
        Literal["auto", "train", "val", "test", "all"],
        typer.Option("--split", help="Which pictures; auto is val if there is one, else all."),
    ] = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a run's model on labelled pictures."""
    with live_view(json) as view:
        from transferkit import evaluate as verb

        evaluation = verb.evaluate(run, data, manifest, split, view.show)
    if json:
        console.print_json(evaluation.to_dict())
    else:
        tables.evaluation_table(evaluation)


@app.command()
def inspect(
    data: Annotated[Path | None, typer.Argument(help="Folder: train/CLASS/, or CLASS/.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV with columns path,label[,split].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the findings [DATA.json].")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a file is unreadable.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at a data set: counts, sizes, unreadable files, duplicates, warnings."""
    with live_view(json) as view:
        from transferkit import inspect_data as verb

        found, path = verb.inspect_data(data, manifest, output, strict, view.show)
    if json:
        console.print_json({**found.to_dict(), "output": path})
    else:
        tables.inspection_table(found)
        console.print_lines([f"all findings: {path}"])


@app.command()
def models(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name, or a pattern like 'resnet*'.")
    ] = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Only those whose weights are at hand.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List backbones: parameters, input size, licence, whether weights are at hand offline."""
    from transferkit.backbones.models import list_models

    found = [m for m in list_models(pattern) if not offline or m.offline != "no"]
    if not found:
        raise usage_error(f"no backbone matches {pattern!r}", "", "try a part of a name: mobilenet")
    if json:
        console.print_json({"models": [vars(m) for m in found]})
        return
    rows = [
        (
            m.name,
            "-" if m.parameters is None else f"{m.parameters:.1f} M",
            m.input_px,
            m.license,
            m.offline,
        )
        for m in found
    ]
    console.print_table(
        f"backbones: {len(rows)}", ("name", "parameters", "input px", "licence", "offline"), rows
    )


@app.command()
def recipes(json: Json = False, debug: Debug = False) -> None:
    """List the recipes that come with transferkit."""
    from transferkit.recipes import describe_recipe, shipped_recipes

    rows = [(name, describe_recipe(path), path) for name, path in shipped_recipes().items()]
    if json:
        keys = ("name", "description", "path")
        console.print_json({"recipes": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    console.print_table("recipes", ("name", "what for"), [row[:2] for row in rows])
    console.print_lines(["use one: transferkit finetune DATA --recipe NAME"])


def environment_error(error: Exception) -> UserError | None:
    """Return what to tell when not the program but the machine is to blame."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    if isinstance(error, MemoryError) or re.search("out of memory|alloc.* memory", str(error)):
        remedy = "try a smaller --batch-size or --image-size, or a smaller --backbone"
        return UserError("there is not enough memory", str(error)[:200], remedy)
    return None


def main() -> None:
    """Run the command line; turn every failure into one message and an exit code."""
    as_json, debug = "--json" in sys.argv, "--debug" in sys.argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: saved, then out
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UserError as error:
        if debug:
            raise
        console.print_error(error, as_json)
        sys.exit(error.exit_code)
    except UsageError as error:
        hint = f"see {error.ctx.command_path} --help" if error.ctx else ""
        what = error.format_message().replace("Value error, ", "").replace("Input should", "must")
        console.print_error(usage_error(what, "", hint), as_json)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        console.print_error(UserError("interrupted"), as_json)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if known := environment_error(error):
            console.print_error(known, as_json)
            sys.exit(1)
        what = f"this is a bug in transferkit: {type(error).__name__}: {error}"
        remedy = "please report it with the traceback that --debug shows"
        console.print_error(UserError(what, "", remedy), as_json)
        sys.exit(1)
