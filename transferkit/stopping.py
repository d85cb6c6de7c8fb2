"""Stopping between steps: the first Ctrl-C lets the running step end, the second does not."""

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
"""Between checkpoints within an epoch: a killed run loses no more."""
HANGUP = getattr(signal, "SIGHUP", None)
"""Sent when the terminal, or the connection to it, is gone; Windows has no such signal."""
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
"""Signals that ask for a stop."""

ASKED = b"\nstopping after this step; press Ctrl-C again to stop immediately\n"


class Stopped(KeyboardInterrupt):
    """An interrupt that was held back until the running step was saved."""


@dataclass
class Stop:
    """A pending request to stop. asked: there is one. saved: `time.monotonic` of the last save."""

    asked: bool = False
    saved: float = field(default_factory=lambda: time.monotonic())

    def is_time(self) -> bool:
        """Whether to save now: a stop was asked for, or the last save is long ago."""
        return self.asked or time.monotonic() - self.saved > SAVE_EVERY_S

    def has_saved(self) -> None:
        """Record that the run is saved. Raises Stopped if a stop was asked for."""
        self.saved = time.monotonic()
        if self.asked:
            raise Stopped


@contextmanager
def between_steps() -> Iterator[Stop]:
    """In this context the first of the signals asks for a stop; the second interrupts.

    On a terminal a message confirms the first, because a step may take a while. A hangup may come
    twice, from the shell and from the kernel, and never interrupts. Signals that are ignored, as
    SIGINT in a shell's background jobs, stay ignored. Outside of the main thread, which alone gets
    signals, no stop is ever asked for.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number != HANGUP:
            raise KeyboardInterrupt
        stop.asked = True
        with suppress(OSError):  # the terminal may be gone
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), ASKED)  # the stream itself may be in use

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
    """Ignore a launcher's SIGTERM, sent to all once one rank fails, while an error is reported.

    The process is about to exit; SIGKILL still ends it at once.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING[1:]:
            signal.signal(number, signal.SIG_IGN)
