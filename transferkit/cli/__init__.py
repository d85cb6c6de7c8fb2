"""The commands: parse, call one function, print. No logic.

The options of `finetune` and `plan` are made from the table of all options in
`transferkit.config`, so that flags, `--help` and recipes cannot drift apart.
"""

import errno
import os
import re
import signal
import sys
from typing import Any, NoReturn

import typer

from transferkit import console, processes
from transferkit.backbones.waiting import sleep_soon
from transferkit.cli import (  # noqa: F401  # their commands join the application
    look,
    pretraining,
    share,
    train,
    use,
    viewing,
)
from transferkit.cli.app import app
from transferkit.cli.options import with_values
from transferkit.cli.standard_streams import lost_output, outlast
from transferkit.errors import UserError, usage_error
from transferkit.files.cache_dir import ADVICE, default_cache_dir
from transferkit.redaction import show_traceback
from transferkit.stopping import STOPPING, last_words

__all__ = ["app", "main"]

KEPT_IN_FILES = ("finetune", "pretrain", "embed", "export", "report", "view")
"""Commands that are not run for what they print, unless it is JSON or help."""

UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer carries or depends on


def environment_error(error: Exception) -> UserError | None:
    """Return what to tell when not the program but the machine, or a path, is to blame."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return usage_error(f"a path is too long: {str(error.filename)[:80]}...")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return usage_error("a path holds a character that no path can hold: NUL")
    if isinstance(error, OSError) and error.strerror:
        if not error.filename:
            return UserError(str(error))
        cache = os.path.abspath(default_cache_dir().expanduser())
        in_cache = os.path.abspath(os.fsdecode(error.filename)).startswith(cache)
        what = f"{error.filename}: {error.strerror}"
        return UserError(what, remedy=ADVICE if in_cache else "")
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
        if as_json and lost_output():
            console.print_error(error)
    sys.exit(error.exit_code)


def prints_results(arguments: list[str]) -> bool:
    """Whether a command is run for what it prints: nothing else keeps it."""
    command, *words = arguments or [""]
    if {"--json", "--help"} & set(words):
        return True
    into_file = any(re.match(r"-o|--output(=|$)", word) for word in words)
    return command not in KEPT_IN_FILES and not (command == "predict" and into_file)


def leave(code: int) -> NoReturn:
    """Leave after a command that went well, unless nobody got what it was run for."""
    lost = lost_output()
    if code or lost is None or not prints_results(sys.argv[1:]):
        sys.exit(code)
    if lost.errno == errno.EPIPE:  # whoever read it has seen enough
        sys.exit(1)
    fail(UserError(f"cannot write to standard output: {lost.strerror}"), as_json=False)


def main() -> None:
    """Run the command line; turn every failure into one message and an exit code."""
    outlast()
    try:
        run()
    except KeyboardInterrupt:  # one more, while a failure was being told
        sys.exit(130)


def run() -> None:
    """Run the command line. Leaves by SystemExit, or by a second KeyboardInterrupt."""
    sleep_soon()  # torch is not loaded yet
    as_json, debug = "--json" in sys.argv, "--debug" in sys.argv
    for number in STOPPING[1:]:  # like Ctrl-C: saved, then out
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, signal.default_int_handler)
    try:
        leave(app(with_values(sys.argv[1:]), standalone_mode=False) or 0)
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
