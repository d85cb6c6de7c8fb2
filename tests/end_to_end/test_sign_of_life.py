"""Every command that works longer says so before it loads a heavy module."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
# a heavy module is not loaded: its name is written in its place, and the command ends
CODE = """
import json, os, sys

class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "numpy", "PIL", "matplotlib"):
            os.write(2, f"<{name}>".encode())
            os._exit(0)

from transferkit.cli import main
sys.meta_path.insert(0, Heavy())
sys.argv = ["transferkit", *json.loads(sys.argv[1])]
main()
"""
COMMANDS = {
    **{name: ["DATA"] for name in ("finetune", "pretrain", "plan", "find-lr", "inspect", "labels")},
    **{name: ["RUN", "IMAGE"] for name in ("predict", "evaluate", "extend")},
    "merge": ["RUN", "RUN"],
    "embed": ["RUN", "IMAGE", "-o", "features.csv"],
    **{name: ["RUN"] for name in ("export", "report", "view", "compare")},
    "models": [],
    "lab": ["skip"],
}


def shown_on_a_terminal(arguments: list[str], folder: Path, **environment: str) -> str:
    """Return what a command writes to its terminal until it would load a heavy module."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, json.dumps(arguments)],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux tells so that the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_shows_a_sign_of_life_before_it_loads_anything_heavy(
    command: str, tmp_path: Path
) -> None:
    first, heavy, _ = shown_on_a_terminal([command, *COMMANDS[command]], tmp_path).partition("<")
    assert heavy  # else the test has nothing to compare with
    assert ESCAPE.sub("", first).split()[:2] == ["loading", "libraries"]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_dumb_terminal_gets_a_plain_line(more: list[str], tmp_path: Path) -> None:
    shown = shown_on_a_terminal(["inspect", "DATA", *more], tmp_path, TERM="dumb")
    assert shown.partition("<")[0] == "loading libraries ...\r\n"
