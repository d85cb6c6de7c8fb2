"""A process that runs transferkit many times, each in a fork that something may befall.

    python zygote.py

Reads one request (JSON) from each line of standard input, and answers each with one line: how the
fork ended. Everything heavy is imported once, before the forks, so that a run takes a second and
hundreds of misfortunes fit into minutes. A request: argv, of transferkit; cwd, the folder it runs
in, and whose files are watched; fault, or None, with

    kind     what happens: see FAULTS
    event    at which write event (from 1): a file opened for writing, renamed, removed, a folder
             made; or, of PICTURE_FAULTS, at which picture opened for reading
    seconds  instead of an event: after so much of the process' time
    size     of kind "quota": bytes that a file may have
    errno    of kind "full": the error that every write gives from then on

Answers: code, the exit code, negative for a signal; writes, pictures: events counted; seconds.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_S = 120
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
SUFFIXES = (".png", ".jpg")
YEAR_S = 365 * 24 * 3600.0
counted = {"writes": 0, "pictures": 0}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def vanish() -> None:
    shutil.rmtree("r", ignore_errors=True)


def jump() -> None:
    real = time.time
    time.time = lambda: real() - YEAR_S  # backwards is the harder way


FAULTS: dict[str, Callable[[], None]] = {
    "kill": kill,
    "terminate": terminate,
    "interrupt": interrupt,
    "vanish": vanish,
    "jump": jump,
}
"""What happens at an event; "full" and "quota" are made otherwise."""
PICTURE_FAULTS: dict[str, Callable[[Path], object]] = {
    "delete picture": lambda path: path.rename(path.with_suffix(".away")),
    "truncate picture": lambda path: os.truncate(path, path.stat().st_size // 2),
    "replace picture": lambda path: path.write_bytes(b"no picture"),
}


def is_write(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether something below the folder is about to be changed."""
    if event == "open":
        path, mode, flags = arguments
        writing = (mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)
    else:
        path, writing = arguments[0], event in WRITES
    if not writing or not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(root)


def install(fault: dict[str, Any], root: str) -> None:
    """Let it happen in this process, and count events."""
    kind, event_number = fault.get("kind"), fault.get("event")
    busy = False
    if kind == "quota":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["size"],) * 2)
    if "seconds" in fault:
        signal.signal(signal.SIGVTALRM, lambda *_: FAULTS[fault["kind"]]())
        signal.setitimer(signal.ITIMER_VIRTUAL, fault["seconds"])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or event not in ("open", *WRITES):
            return
        busy = True
        try:
            if is_write(event, arguments, root):
                counted["writes"] += 1
                if kind == "full" and counted["writes"] >= (event_number or 0):
                    number = fault["errno"]
                    raise OSError(number, os.strerror(number), os.fsdecode(arguments[0]))
                if kind in FAULTS and counted["writes"] == event_number:
                    FAULTS[kind]()
            elif event == "open" and str(arguments[0]).endswith(SUFFIXES):
                counted["pictures"] += 1
                if kind in PICTURE_FAULTS and counted["pictures"] == event_number:
                    PICTURE_FAULTS[kind](Path(arguments[0]))
        finally:
            busy = False

    sys.addaudithook(hook)


def child(request: dict[str, Any]) -> int:
    """Run transferkit as a person would; return its exit code."""
    os.chdir(request["cwd"])
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["transferkit", *request["argv"]]
    from transferkit.cli import main

    install(request["fault"] or {}, request["cwd"])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and return how it ended."""
    reading, writing = os.pipe()
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 70
        try:
            code = child(request)
        finally:
            sys.stdout.flush()
            os.write(writing, json.dumps(counted).encode())
            os._exit(code)
    os.close(writing)
    while time.perf_counter() - started < LONGEST_S:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.005)
    else:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": time.perf_counter() - started, **json.loads(told or "{}")}


def main() -> None:
    import torch

    import transferkit.cli
    import transferkit.verbs.embed
    import transferkit.verbs.export
    import transferkit.verbs.finetune
    import transferkit.verbs.predict
    import transferkit.verbs.pretrain  # noqa: F401

    torch.set_num_threads(1)
    assert errno.ENOSPC
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
