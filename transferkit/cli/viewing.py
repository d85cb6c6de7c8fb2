"""The command that opens a run, or suspicious labels, in the browser."""

from pathlib import Path
from typing import Annotated, Any

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, app, live_view
from transferkit.cli.options import (
    FEATURES,
    Select,
    Sets,
    build_config,
    given_flags,
    with_predict_options,
)
from transferkit.config import option_fields
from transferkit.config.predict import SECTION
from transferkit.errors import usage_error
from transferkit.files.strict_json import strict_json
from transferkit.runs.folder import RECIPE

BOTH = "data.max_pixels"
"""The option of the data that a run takes, too."""
SAME = {"predict.seed": "training.seed", "predict.engine": "device.engine"}
"""Options of a run that have the flag of another one with --labels."""


@app.command()
@with_predict_options("select", "by", "batch_size", more=set(FEATURES) - {*SAME.values()})
def view(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder; with --labels, DATA or a run folder."),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Decide labels of DATA that are probably wrong.")
    ] = False,
    select: Select = None,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 chooses a free one."),
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Classify pictures, or decide suspicious labels, in the browser.

    The page is served to this machine only (127.0.0.1), until Ctrl-C, to whoever has the address
    with its token. If the head has dropout, each prediction uses 30 Monte Carlo samples;
    --mc-dropout 0 turns that off. Decisions on labels are saved at once, in corrections.csv unless
    another table is named; a later session goes on there.
    """
    typed = given_flags(flags)
    require_fitting(labels, run, select, bool(sets), typed)
    with live_view(json) as shown:

        def ready(address: str, once: str) -> None:
            shown.clear()
            # not through the console, which would hide the token
            about = {"address": address, "data" if labels else "run": run}
            typer.echo(strict_json(about) if json else f"{address}   (Ctrl-C to stop)")
            if browser:
                verb.open_browser(once)

        if labels:
            for own, other in SAME.items():
                flags[other.replace(".", "__")] = flags.pop(own.replace(".", "__"))
            is_run = run is not None and (run / RECIPE).is_file()
            config = build_config(None if is_run else run, None, None, None, flags)
        from transferkit.verbs import view as verb

        if labels:
            from transferkit.verbs.review import review

            source = run if is_run else None
            ended = review(config, source, select, port, shown.show, ready).summary()
        else:
            assert run is not None
            folder = verb.open_folder(run)
            verb.view(folder, verb.view_options(folder, sets or [], typed), port, shown.show, ready)
            ended = "ended"
    if not json:
        console.print_lines([ended])


def require_fitting(
    labels: bool, run: Path | None, select: int | None, has_sets: bool, typed: dict[str, Any]
) -> None:
    """Refuse options of a run where labels are decided, and the other way round."""
    of_run = {key for key in typed if key.startswith(f"{SECTION}.")}
    useless = of_run - SAME.keys() if labels else typed.keys() - of_run - {BOTH}
    if useless or (has_sets and labels):
        named = (item.option.flag for item in option_fields() if item.key in useless)
        flag = next(named, "--set").partition("/")[0]
        raise usage_error(f"{flag} has no effect {'with' if labels else 'without'} --labels")
    if not labels and (select is not None or run is None):
        what = "no run given" if run is None else "--select has no effect without --labels"
        raise usage_error(what, "", "transferkit view RUN, or transferkit view DATA --labels")
