"""The application that the commands belong to, and the options that all of them take."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from transferkit import __version__, console, processes
from transferkit.cli.help import Command, Group
from transferkit.errors import usage_error
from transferkit.events import Working


class App(typer.Typer):
    """An application whose commands all have the same help."""

    def command(self, *names: Any, **settings: Any) -> Any:
        """Add a command, as typer does."""
        return super().command(*names, cls=Command, **settings)


app = App(
    name="transferkit",
    cls=Group,
    help="Transfer learning for image classification: frozen first, then progressively unfrozen.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback if an error occurs.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        console.print_lines([f"transferkit {__version__}"])
        raise typer.Exit


SHARED = ("finetune", "pretrain", "predict")
"""The commands that several processes can do together."""


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Transfer learning for image classification: frozen first, then progressively unfrozen."""
    number = processes.place().count
    if number > 1 and context.invoked_subcommand not in SHARED:
        raise usage_error(
            f"{context.invoked_subcommand} runs in one process, not in {number}",
            "",
            f"start it without torchrun or srun; together they can {', '.join(SHARED)}",
        )


@contextmanager
def live_view(as_json: bool) -> Iterator[console.LiveView]:
    """Show events while work goes on; of several processes, what the first one does.

    It begins before anything heavy is imported, so that a person sees at once that work goes on.
    """
    with console.LiveView(as_json=as_json, muted=not processes.is_first()) as view:
        view.show(Working("loading libraries"))
        yield view
