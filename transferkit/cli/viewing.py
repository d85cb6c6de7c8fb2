"""The command that opens a run in the browser."""

from typing import Annotated, Any

import typer

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view
from transferkit.cli.options import Sets, given_flags, with_predict_options


@app.command()
@with_predict_options("select", "by", "batch_size")
def view(
    run: RunArgument,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0 is a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in your browser.")
    ] = True,
    sets: Sets = None,
    json: Json = False,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Drop pictures on a page: answers, how sure they are, what they rest on.

    The page is served on this machine alone (127.0.0.1), until Ctrl-C. Where the model has dropout
    in its head, answers are sampled 30 times; --mc-dropout 0 turns that off.
    """
    with live_view(json) as shown:
        from transferkit.verbs import view as verb

        folder = verb.open_folder(run)
        options = verb.view_options(folder, sets or [], given_flags(flags))

        def ready(address: str) -> None:
            shown.clear()
            if json:
                console.print_json({"address": address, "run": run})
            else:
                console.print_lines([f"{address}   (Ctrl-C ends it)"])
            if browser:
                verb.open_browser(address)

        verb.view(folder, options, port, shown.show, ready)
    if not json:
        console.print_lines(["ended"])
