"""Stopping at a good moment: the first Ctrl-C lets a step end, the second does not."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

SAVE_EVERY_S = 600.0
"""Within an epoch: a killed run loses no more."""
HANGUP = getattr(signal, "SIGHUP", None)
"""The terminal, or the connection to it, is gone; Windows has no such signal."""
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
"""Signals that ask for a stop."""

ASKED = b"\nstopping when this step is saved; once more stops at once\n"


class Stopped(KeyboardInterrupt):
    """An interrupt that waited until the step it came in was saved."""


@dataclass
class Stop:
    """Whether to save now, and to leave. saved: when it was last done, of `time.monotonic`."""

    asked: bool = False
    saved: float = field(default_factory=lambda: time.monotonic())

    def is_time(self) -> bool:
        """Whether to save where the run stands: to leave, or because it is long ago."""
        return self.asked or time.monotonic() - self.saved > SAVE_EVERY_S

    def has_saved(self) -> None:
        """Note that it is done. Raises Stopped where a person waits for it."""
        self.saved = time.monotonic()
        if self.asked:
            raise Stopped


@contextmanager
def between_steps() -> Iterator[Stop]:
    """Within, the first of the signals only asks for a stop; the second is KeyboardInterrupt.

    A person at a terminal is told, because a step may take a while. One hangup may be told twice,
    by the shell and by the kernel: the second time it asks for nothing more.
    A signal that is ignored, as SIGINT in background jobs of a shell, stays so. In other threads
    than the main one, which get no signals, nobody ever asks.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number != HANGUP:
            raise KeyboardInterrupt
        stop.asked = True
        with suppress(OSError):  # the terminal may be gone
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), ASKED)  # not through a stream that may be in use

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    before = {n: handler for n, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.asked:
        raise KeyboardInterrupt


def last_words() -> None:
    """Keep a launcher, which ends every process of a job once one is lost, from cutting them off.

    The process is on its way out; SIGKILL still ends it at once.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING[1:]:
            signal.signal(number, signal.SIG_IGN)
