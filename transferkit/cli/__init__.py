"""The commands: parse, call one function, print. No logic.

The options of `finetune` and `plan` are made from the table of all options in
`transferkit.config`, so that flags, `--help` and recipes cannot drift apart.
"""

import errno
import re
import signal
import sys
from typing import Any, NoReturn

import typer

from transferkit import console, processes
from transferkit.cli import (  # noqa: F401  # their commands join the application
    look,
    pretraining,
    share,
    train,
    use,
    viewing,
)
from transferkit.cli.app import app
from transferkit.cli.options import with_default_samples
from transferkit.errors import UserError, usage_error
from transferkit.redaction import show_traceback
from transferkit.stopping import last_words
from transferkit.waiting import sleep_soon

__all__ = ["app", "main"]

UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer carries or depends on


def environment_error(error: Exception) -> UserError | None:
    """Return what to tell when not the program but the machine, or a path, is to blame."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return usage_error(f"a path is too long: {str(error.filename)[:80]}...")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return usage_error("a path holds a character that no path can hold: NUL")
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    if isinstance(error, MemoryError) or re.search("out of memory|alloc.* memory", str(error)):
        remedy = "try a smaller --batch-size or --image-size, or a smaller --backbone"
        return UserError("there is not enough memory", str(error)[:200], remedy)
    return None


def fail(error: UserError, as_json: bool) -> NoReturn:
    """Tell what is wrong, once for all processes of a job, and leave."""
    here = processes.place()
    if here.count > 1 and here.rank == 0:
        last_words()
    if processes.wait_quietly(error):
        if here.count > 1:
            last_words()
        if here.rank > 0:
            error.what = f"process {here.rank} of {here.count}: {error.what}"
        console.print_error(error, as_json)
    sys.exit(error.exit_code)


def main() -> None:
    """Run the command line; turn every failure into one message and an exit code."""
    try:
        run()
    except KeyboardInterrupt:  # one more, while a failure was being told
        sys.exit(130)


def run() -> None:
    """Run the command line. Leaves by SystemExit, or by a second KeyboardInterrupt."""
    sleep_soon()  # torch is not loaded yet
    as_json, debug = "--json" in sys.argv, "--debug" in sys.argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: saved, then out
    try:
        sys.exit(app(with_default_samples(sys.argv[1:]), standalone_mode=False) or 0)
    except UserError as error:
        if debug:
            raise
        fail(error, as_json)
    except UsageError as error:
        hint = f"see {error.ctx.command_path} --help" if error.ctx else ""
        what = error.format_message().replace("Value error, ", "").replace("Input should", "must")
        fail(usage_error(what, "", hint), as_json)
    except (KeyboardInterrupt, typer.Abort):
        fail(UserError("interrupted", exit_code=130), as_json)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if known := environment_error(error):
            fail(known, as_json)
        what = f"this is a bug in transferkit: {type(error).__name__}: {error}"
        remedy = "please report it with the traceback that --debug shows"
        fail(UserError(what, "", remedy), as_json)
    finally:
        sys.excepthook = show_traceback  # of --debug; typer has set its own
