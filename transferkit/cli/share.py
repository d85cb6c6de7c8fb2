"""The commands that show a finished run to others, or take its model elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.cli.tables.export import export_table
from transferkit.errors import usage_error

Compared = Annotated[
    Path | None, typer.Option("--data", help="Pictures to compare on [those of the run].")
]
Sparsity = Annotated[
    float, typer.Option("--sparsity", min=0, max=0.99, help="Share of weights to set to 0.")
]
SparseEpochs = Annotated[
    int, typer.Option("--sparse-epochs", min=0, help="Train on so long with the others.")
]


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN...]", help="Run folders.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page of several runs [comparison.html]."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's report.html again, or one page of several runs side by side."""
    if len(runs) == 1 and output is not None:
        raise usage_error(
            "--output has no effect on the report of one run",
            "it lies in the run's folder: report.html",
        )
    with live_view(json) as view:
        from transferkit.verbs import report as verb

        if len(runs) == 1:
            path = verb.report(runs[0], view.show)
        else:
            path = verb.report_together(runs, output or Path("comparison.html"), view.show)
    if json:
        console.print_json({"report": path})
    else:
        console.print_lines([f"report: {path}"])


@app.command()
def export(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write [RUN/exports/...].")
    ] = None,
    format: Annotated[
        Literal["onnx", "torchscript", "torch-export", "openvino", "safetensors"],
        typer.Option("--format", help="What kind of file."),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option("--precision", help="Of weights; int8 also of activations, calibrated."),
    ] = "fp32",
    fold: Annotated[
        bool | None,
        typer.Option(
            "--fold-batchnorm/--no-fold-batchnorm",
            help="Fold batch norms into their layers [yes, but for safetensors].",
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-accuracy-drop", min=0, max=1, help="Refuse a model that loses more accuracy."
        ),
    ] = 0.015,
    data: Compared = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=2, help="Compare on at most so many.")
    ] = 300,
    calibration: Annotated[
        int,
        typer.Option("--calibration-pictures", min=16, help="Training pictures that set int8."),
    ] = 96,
    sparsity: Sparsity = 0.0,
    sparse_epochs: SparseEpochs = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's model as a file for other programs; compare it with the original."""
    with live_view(json) as view:
        from transferkit.verbs import export as verb

        options = verb.ExportOptions(
            format=format,
            precision=precision,
            fold_batchnorm=fold,
            max_accuracy_drop=max_drop,
            data=data,
            pictures=pictures,
            calibration_pictures=calibration,
            sparsity=sparsity,
            sparse_epochs=sparse_epochs,
        )
        path, result = verb.export(run, output, options, view.show)
    if json:
        console.print_json(verb.to_dict(path, result))
    else:
        export_table(path, result)
