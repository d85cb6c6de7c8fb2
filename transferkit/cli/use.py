"""The commands that use a finished run."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from transferkit import console, processes
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.cli.options import (
    DATA_HELP,
    AllowOutside,
    Corrections,
    Sets,
    given_flags,
    require_manifest,
    take_data,
    with_options,
    with_predict_options,
)
from transferkit.cli.tables.results import measured_table, prediction_table, selection_table
from transferkit.config.data import Data
from transferkit.config.predict import DECIDING
from transferkit.errors import UserError, usage_error
from transferkit.events import Show, Working

if TYPE_CHECKING:
    from transferkit.inference.outputs import Outputs
    from transferkit.verbs.predict import Job

Row = dict[str, Any]
MOST_SHOWN = 1000  # rows of a table on the screen

Runs = Annotated[
    str, typer.Argument(metavar="RUN[,RUN...]", help="A run folder, or several (an ensemble).")
]

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURES",
        help="Files, folders, patterns ('a/*.jpg'), shards ('a-{000..127}.tar'), or - for a list "
        "on standard input.",
    ),
]

Trust = Annotated[
    bool, typer.Option("--trust", help="Allow .ts and .pt2 archives, which can run arbitrary code.")
]


@app.command()
@with_predict_options()
def predict(
    run: Runs,
    images: Images,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the rows to a .csv, .jsonl or .parquet file."),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Resume: skip pictures already in --output.")
    ] = False,
    save_samples: Annotated[
        Path | None, typer.Option("--save-samples", help="Save all samples (.safetensors).")
    ] = None,
    save_features: Annotated[
        Path | None,
        typer.Option("--save-features", help="Save the features of the backbone (.safetensors)."),
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option("--copy-to", help="Copy the pictures chosen by --select to this folder."),
    ] = None,
    saliency: Annotated[
        Path | None, typer.Option("--saliency", help="Save Grad-CAM saliency maps to this folder.")
    ] = None,
    trust: Trust = False,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Classify pictures, with the uncertainty of each prediction."""
    with live_view(json or output is None) as view, processes.joined():
        from transferkit.inference.outputs import Outputs
        from transferkit.verbs.embed import embed_instead

        classifying = saliency is not None or processes.count() > 1
        wanted = None if classifying else save_features
        if embedded := embed_instead(run, images, wanted, view.show):
            console.print_lines([embedded])
            return
        _, max_pixels = take_data(flags)
        typed = (sets or (), given_flags(flags))
        outputs = Outputs(output, skip_existing, save_samples, save_features, copy_to, saliency)
        job, rows = start((run, trust), images, typed, outputs, view.show, max_pixels)
        most = 0 if output is not None else sys.maxsize if json else MOST_SHOWN
        shown, count, read_any, reason = take_all(rows, most)
    if not processes.is_first():
        return
    if json:
        console.print_json({"predictions": shown, "rows": count, "output": output, **job.told})
    elif output is not None:
        console.print_lines([f"{count} rows written to {output}"])
    else:
        (selection_table if job.options.select else prediction_table)(shown)
        if count > len(shown):
            console.print_lines([f"and {count - len(shown):,} more: write them all with --output"])
    if count and not read_any:
        if json:
            raise typer.Exit(1)  # the rows say why
        raise UserError("no picture could be read", reason)


def take_all(rows: Iterator[Row], most: int) -> tuple[list[Row], int, bool, str]:
    """Return the first rows, and of all processes: how many, if any was read, else why not."""
    shown: list[Row] = []
    count, read_any, reason = 0, False, ""
    for count, row in enumerate(rows, start=1):
        shown += [row] if count <= most else []
        read_any = read_any or not row["error"]
        reason = reason or row["error"]
    counts, reads, reasons = zip(*processes.from_all((count, read_any, reason)), strict=True)
    return shown, sum(counts), any(reads), next(filter(None, reasons), "")


def start(
    model: tuple[str, bool],
    images: list[str],
    typed: tuple[Iterable[str], dict[str, Any]],
    outputs: "Outputs",
    show: Show,
    max_pixels: int | None,
) -> tuple["Job", Iterator[Row]]:
    """Check what was typed, `--set` pairs and flags; return the job and the rows to come.

    model: what to predict with, and whether its maker is trusted. max_pixels: None for its own.
    """
    from transferkit.data.addresses import fetch
    from transferkit.verbs import predict as verb

    models = verb.open_models(*model)
    options = verb.read_options(models, *typed, outputs)
    fetch(images, show)
    show(Working("loading the model"))
    job = verb.open_job(models, (images, sys.stdin), options, model[1], max_pixels)
    return job, verb.predict(job, outputs, show)


@app.command()
@with_options("data.max_pixels")
def embed(
    run: RunArgument,
    images: Images,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .safetensors, .csv, .jsonl or .parquet."
        ),
    ],
    engine: Annotated[
        Literal["auto", "torch", "onnx"],
        typer.Option("--engine", help="Inference engine for the backbone."),
    ] = "auto",
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Extract feature vectors with a fine-tuned or pretrained backbone."""
    with live_view(json) as view:
        from transferkit.data.addresses import fetch
        from transferkit.verbs import embed as verb

        _, max_pixels = take_data(flags)
        fetch(images, view.show)
        files = verb.list_pictures(images, sys.stdin)
        written = verb.embed(run, files, output, engine, view.show, max_pixels)
    if json:
        console.print_json(asdict(written))
    else:
        console.print_lines([written.line()])


@app.command()
@with_predict_options(*DECIDING, "abstain_by")
def evaluate(
    run: Runs,
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV with columns path,label[,split].")
    ] = None,
    split: Annotated[
        Literal["auto", "train", "val", "test", "all"],
        typer.Option("--split", help="Split to evaluate on; auto: val if there is one, else all."),
    ] = "auto",
    folds: Annotated[
        bool, typer.Option("--folds", help="What a run of finetune --folds says out of fold.")
    ] = False,
    allow_outside: AllowOutside = False,
    corrections: Corrections = None,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Evaluate accuracy, calibration and uncertainty on labelled data."""
    unused = {f"predict.{name}" for name in (*DECIDING, "abstain_by")}
    for pair in sets or ():
        if pair.partition("=")[0].strip() in unused:
            raise usage_error(f"--set {pair} has no effect on evaluate")
    require_manifest(allow_outside, manifest)
    with live_view(json) as view:
        from transferkit.recipes.reading import predict_options
        from transferkit.verbs import evaluate as verb
        from transferkit.verbs.predict import open_runs

        folders = open_runs(run)
        if folds and (data or manifest or sets or len(folders) > 1 or given_flags(flags)):
            what = "evaluate --folds takes one run and nothing else"
            raise usage_error(
                what, "its pictures, and their folds, are those of the run", "leave the others out"
            )
        ignored = (*DECIDING, "abstain_by")
        _, max_pixels = take_data(flags)
        options = predict_options(folders[0], sets or (), given_flags(flags), ignored)
        given = Data(data, manifest, allow_outside, corrections=corrections)
        if folds:
            measured = verb.evaluate_folds(folders[0])
        else:
            measured = verb.evaluate(folders, given, split, options, view.show, max_pixels)
    if json:
        console.print_json(measured.to_dict())
    else:
        measured_table(measured)
