"""One bad input at a time: what came of it, within which time and memory."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from transferkit.cli import main
from transferkit.data.decode import DecodeError
from transferkit.errors import UserError

LONGEST_S = 10
MOST_MB = 1500
"""Above what the process held before; a picture at the limit of 100 million pixels is 300 MB."""


class TooLong(BaseException):
    """Not an Exception, so that nothing under attack can take it for a fault of the input."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise `TooLong` in the main thread after so many seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resident_mb(which: str) -> float:
    """Return VmRSS, or VmHWM, its highest value since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{which}:"))


def forget_peak() -> None:
    """Start to measure the peak of memory anew. Source: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def attack(call: Callable[[], object]) -> str:
    """Return what is wrong with how a call took its input, "" where it was done or refused well.

    Refused well: by UserError or DecodeError, of few lines that say something.
    """
    measured = os.access("/proc/self/clear_refs", os.W_OK)
    if measured:
        forget_peak()
        before = resident_mb("VmRSS")
    begun = time.perf_counter()
    problem = ""
    try:
        with alarm(LONGEST_S):
            call()
    except (UserError, DecodeError) as error:
        problem = badly_told(str(error))
    except TooLong as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    if time.perf_counter() - begun > LONGEST_S:  # inside of a library that no signal reaches
        return f"longer than {LONGEST_S} s"
    if measured and resident_mb("VmHWM") - before > MOST_MB:
        return f"{resident_mb('VmHWM') - before:.0f} MB more memory"
    return problem


def badly_told(message: str) -> str:
    """Return what is wrong with an error message."""
    if not message.strip():
        return "an empty message"
    if len(message) > 4000 or len(message.splitlines()) > 30:
        return f"a message of {len(message)} characters: {message[:200]}"
    if "Traceback" in message or "bug in transferkit" in message:
        return message[:300]
    return ""


def command(*arguments: object, codes: tuple[int, ...] = (0, 1, 2)) -> Callable[[], None]:
    """Return a call of the command line that raises where the exit code or the output is wrong."""

    def call() -> None:
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        old = signal.getsignal(signal.SIGTERM)
        sys.argv = ["transferkit", *map(str, arguments)]
        code: Any = None
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            sys.argv = before
            signal.signal(signal.SIGTERM, old)
        told = err.getvalue()
        if code not in codes or (code and "error: " not in told and '"error"' not in told):
            raise AssertionError(f"exit code {code}: {told[:300]}")
        if wrong := badly_told(told or "nothing"):
            raise AssertionError(wrong)

    return call
