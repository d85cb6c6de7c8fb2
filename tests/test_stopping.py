"""Asking a run to stop: once, and twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from transferkit import stopping
from transferkit.stopping import Stopped, between_steps, last_words

STOPPED = """
import os, signal
from transferkit.stopping import Stopped, between_steps
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with between_steps() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop.has_saved()
except Stopped:
    print("saved")
"""


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    """As the command line sets it up, whatever the tests were started from."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    with between_steps() as stop:
        assert not stop.is_time()
        os.kill(os.getpid(), number)
        assert stop.is_time()
        with pytest.raises(KeyboardInterrupt) as told:
            os.kill(os.getpid(), number)
        assert type(told.value) is KeyboardInterrupt
        with pytest.raises(Stopped):
            stop.has_saved()
        stop.asked = False
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_hangup_asks_once_however_often_it_is_told() -> None:
    with between_steps() as stop:
        try:
            os.kill(os.getpid(), signal.SIGHUP)  # from the shell
            os.kill(os.getpid(), signal.SIGHUP)  # and from the kernel
        except KeyboardInterrupt:  # which would end the tests
            pytest.fail("a hangup interrupts at once")
        assert stop.is_time()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.asked = False
    assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler


def test_who_asked_in_vain_is_heard_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), between_steps():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with between_steps() as stop:
        os.kill(os.getpid(), number)
        assert not stop.asked
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_terminal_that_is_gone_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    person, terminal = os.openpty()
    with open(terminal, "w") as stderr, between_steps() as stop:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(stderr, "isatty", lambda: True, raising=False)
        os.close(person)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        stop.asked = False


def test_a_long_epoch_is_saved_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    with between_steps() as stop:
        now = stopping.SAVE_EVERY_S + 1
        assert stop.is_time()
        stop.has_saved()
        assert not stop.is_time()


def test_a_person_at_a_terminal_is_told_that_the_step_ends_first() -> None:
    person, terminal = os.openpty()
    told = subprocess.run(
        [sys.executable, "-c", STOPPED],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        text=True,
    )
    os.close(terminal)
    assert os.read(person, 1000).decode().split("\r\n")[1].startswith("stopping after this step;")
    os.close(person)
    assert told.stdout == "saved\n"
    quiet = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, check=True, text=True
    )
    assert (quiet.stdout, quiet.stderr) == ("saved\n", "")


def test_a_launcher_does_not_cut_off_the_last_words() -> None:
    last_words()
    for number in (signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt):  # a person still can
        os.kill(os.getpid(), signal.SIGINT)
