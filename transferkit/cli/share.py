"""The commands that show a finished run to others."""

from transferkit import console
from transferkit.cli.app import Debug, Json, RunArgument, app, live_view


@app.command()
def report(run: RunArgument, json: Json = False, debug: Debug = False) -> None:
    """Write a run's report.html again: figures, curves, mistakes, all in one file."""
    with live_view(json) as view:
        from transferkit import report as verb

        path = verb.report(run, view.show)
    if json:
        console.print_json({"report": path})
    else:
        console.print_lines([f"report: {path}"])
