"""The commands that fine-tune, or plan it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferkit import console, processes
from transferkit.cli.app import Debug, Json, app, live_view
from transferkit.cli.options import (
    DATA_HELP,
    Out,
    Recipe,
    Resume,
    Sets,
    Stages,
    build_config,
    require_alone,
    with_config_options,
)
from transferkit.cli.tables.training import closing_table, plan_table, range_table
from transferkit.stopwatch import Stopwatch

if TYPE_CHECKING:
    from transferkit.finetuning.summary import RunSummary


@app.command()
@with_config_options()
def finetune(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    stages: Stages = None,
    out: Out = None,
    resume: Resume = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Fine-tune a classifier on a folder of labelled pictures."""
    place = (data, flags["data__manifest"], flags["data__corrections"])
    others = [v for n, v in flags.items() if n not in ("data__manifest", "data__corrections")]
    require_alone(resume, [recipe, sets, stages, out, *others])
    watch = Stopwatch()
    with live_view(json) as view:
        config = None if resume else build_config(data, recipe, sets, stages, flags)
        with processes.joined():
            with watch.on("imports"):
                from transferkit.verbs import finetune as verb

            if resume is not None:
                summary = verb.resume(resume, view.show, watch, place)
            else:
                assert config is not None
                summary = verb.finetune(config, out, view.show, watch)
    if processes.is_first():
        show_summary(summary, json)


def show_summary(summary: "RunSummary", json: bool) -> None:
    """Print what came out of a run."""
    if json:
        console.print_json(summary.to_dict())
    else:
        closing_table(summary)


@app.command()
@with_config_options()
def plan(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    stages: Stages = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Show the stages, learning rates, cache and time of a fine-tuning."""
    watch = Stopwatch()
    with live_view(json) as view:
        config = build_config(data, recipe, sets, stages, flags)
        with watch.on("imports"):
            from transferkit.verbs import plan as verb

        rows, notices = verb.plan(config, view.show, watch)
    if json:
        console.print_json({"stages": [vars(row) for row in rows], "notices": notices})
    else:
        plan_table(rows)
        console.print_lines(notices)


@app.command()
def extend(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run that begins with a solve.")],
    data: Annotated[Path | None, typer.Argument(metavar="MORE", help=DATA_HELP)] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="CSV table of the new pictures.")
    ] = None,
    out: Out = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add pictures or classes to a solved run without its old pictures."""
    with live_view(json) as view:
        from transferkit.verbs import extend as verb

        summary = verb.extend(run, data, manifest, out, view.show)
    show_summary(summary, json)


@app.command()
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of the same options.")],
    out: Out = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Solve on the pictures of several runs together, without them."""
    with live_view(json) as view:
        from transferkit.verbs import extend as verb

        summary = verb.merge(tuple(runs), out, view.show)
    show_summary(summary, json)


@app.command("find-lr")
@with_config_options("training.lr", "training.unfrozen_lr", "device.strategy", "device.compile")
def find_lr(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    recipe: Recipe = None,
    sets: Sets = None,
    stages: Stages = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the plot [learning-rate-DATA.png]."),
    ] = None,
    lowest: Annotated[
        float, typer.Option("--from-lr", min=1e-12, max=1e3, help="Lowest learning rate.")
    ] = 1e-6,
    highest: Annotated[
        float, typer.Option("--to-lr", min=1e-12, max=1e3, help="Highest learning rate.")
    ] = 10.0,
    steps: Annotated[
        int,
        typer.Option("--steps", min=20, max=100_000, help="Steps from the lowest to the highest."),
    ] = 200,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Suggest a learning rate by a range test of the first stage."""
    with live_view(json) as view:
        config = build_config(data, recipe, sets, stages, flags)
        from transferkit.training.rate_range import Range
        from transferkit.verbs import find_lr as verb

        found, path = verb.find_lr(config, output, Range(lowest, highest, steps), view.show)
    if json:
        console.print_json({**found.to_dict(), "output": path})
    else:
        range_table(found, path)
