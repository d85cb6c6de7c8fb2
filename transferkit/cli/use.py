"""The commands that use a finished run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.errors import UserError, usage_error
from transferkit.tables.results import evaluation_table, prediction_table


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
        prediction_table(rows)
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
        evaluation_table(evaluation)
