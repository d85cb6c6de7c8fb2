import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit import console
from transferkit.processes import LostProcess
from transferkit.runs.folder import RunFolder
from transferkit.runs.life import working_on

Cli = Callable[..., Any]
LISTENING = (  # a shell that starts the tests in the background has Ctrl-C ignored: listen again
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from transferkit.cli import main; main()"
)
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32", "--views", "1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_is_saved_and_can_go_on(
    pictures: Path, cli: Cli, number: signal.Signals
) -> None:
    command = (sys.executable, "-c", LISTENING, "finetune")
    options = ("--stages", "1:60@1e-2", "--set", "training.patience=60", "--out", "r")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, str(pictures), *TINY, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        deadline = time.monotonic() + 60
        while not Path("r/checkpoints/last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = [line.strip() for line in err.splitlines()]
    unit = "step" if "step" in lines[0] else "epoch"  # whatever it was at
    assert lines == [
        f"error: interrupted; every finished {unit} is saved",
        "the run is in r",
        "continue it with: transferkit finetune --resume r",
    ]
    assert not Path("r/model.safetensors").exists()
    if number == signal.SIGINT:
        assert cli("finetune", "--resume", "r").code == 0
        assert cli("finetune", "--recipe", "r", "--out", "whole").code == 0
        a, b = (
            hashlib.sha256(Path(name, "model.safetensors").read_bytes()).hexdigest()
            for name in ("r", "whole")
        )
        assert a == b


def test_one_more_interrupt_while_the_first_is_told_leaves_quietly(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "print_error", interrupted)
    ended = cli("finetune", "nowhere")
    assert ended.code == 130
    assert ended.err == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_lost_process_is_told_though_the_launcher_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            pytest.raises(LostProcess, match="every finished epoch is saved"),
            working_on(RunFolder(tmp_path), "pretrain"),
        ):
            raise LostProcess("another process of this job has ended")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
