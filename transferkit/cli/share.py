"""The commands that present a finished run, or export its model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.cli.tables.export import export_table
from transferkit.errors import usage_error

Compared = Annotated[
    Path | None, typer.Option("--data", help="Labelled pictures to compare on [those of the run].")
]
Sparsity = Annotated[
    float,
    typer.Option(
        "--sparsity", min=0, max=0.99, help="Prune this share of the weights (set them to zero)."
    ),
]
SparseEpochs = Annotated[
    int, typer.Option("--sparse-epochs", min=0, help="Epochs of training while weights are pruned.")
]


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page that compares several runs [comparison.html]."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rewrite the HTML report of a run, or compare several on one page."""
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
        Path | None, typer.Option("--output", "-o", help="File to write [in RUN/exports/].")
    ] = None,
    format: Annotated[
        Literal["onnx", "torchscript", "torch-export", "openvino", "safetensors"],
        typer.Option("--format", help="File format."),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option("--precision", help="Precision of the weights; int8: also of activations."),
    ] = "fp32",
    fold: Annotated[
        bool | None,
        typer.Option(
            "--fold-batchnorm/--no-fold-batchnorm",
            help="Fold batch norm into the layers before it [yes, except for safetensors].",
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-accuracy-drop", min=0, max=1, help="Fail if accuracy drops by more than this."
        ),
    ] = 0.015,
    data: Compared = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=2, help="Maximum number of pictures to compare on.")
    ] = 300,
    calibration: Annotated[
        int, typer.Option("--calibration-pictures", min=16, help="Pictures that calibrate int8.")
    ] = 96,
    sparsity: Sparsity = 0.0,
    sparse_epochs: SparseEpochs = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a model (ONNX, TorchScript, OpenVINO ...) and verify it."""
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
