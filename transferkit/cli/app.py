"""The application that the commands belong to, and the options that all of them take."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from transferkit import __version__, console

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


@contextmanager
def live_view(as_json: bool) -> Iterator[console.LiveView]:
    """Show events while work goes on."""
    with console.LiveView(as_json=as_json) as view:
        yield view
