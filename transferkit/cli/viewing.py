"""The command that opens a run in the browser."""

from typing import Annotated, Any

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.cli.options import Sets, given_flags, with_predict_options
from transferkit.files.strict_json import strict_json


@app.command()
@with_predict_options("select", "by", "batch_size")
def view(
    run: RunArgument,
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
    """Classify pictures in the browser, with uncertainty and saliency.

    The page is served to this machine only (127.0.0.1), until Ctrl-C, to whoever has the address
    with its token. If the head has dropout, each prediction uses 30 Monte Carlo samples;
    --mc-dropout 0 turns that off.
    """
    with live_view(json) as shown:
        from transferkit.verbs import view as verb

        folder = verb.open_folder(run)
        options = verb.view_options(folder, sets or [], given_flags(flags))

        def ready(address: str, once: str) -> None:
            shown.clear()
            # not through the console, which would hide the token
            typer.echo(
                strict_json({"address": address, "run": run})
                if json
                else f"{address}   (Ctrl-C to stop)"
            )
            if browser:
                verb.open_browser(once)

        verb.view(folder, options, port, shown.show, ready)
    if not json:
        console.print_lines(["ended"])
