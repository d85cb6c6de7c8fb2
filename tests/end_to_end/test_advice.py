"""What a command advises is of options that it has, and works when followed."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from transferkit.cli import app

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)
PACKAGE = Path(__file__).parents[2] / "transferkit"
FLAG = re.compile(r"(?<![\w-])(?:transferkit )?([a-z][a-z-]*)? ?(--[a-z][a-z0-9-]+)")
OTHERS = {"pip": {"--force-reinstall", "--upgrade"}, "tar": {"--create", "--file", "--directory"}}
"""Flags of programs that are not ours."""


def flags_of() -> dict[str, set[str]]:
    group = typer.main.get_command(app)
    return {
        name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


FLAGS = flags_of()
EVERY = set().union(*FLAGS.values())


def not_there(text: str, command: str | None) -> list[str]:
    """Return the flags in a text that the command, or the one named before the flag, has not."""
    found = []
    for named, flag in FLAG.findall(text):
        known = FLAGS.get(named) or (FLAGS[command] if command else EVERY)
        if flag not in known | set().union(*OTHERS.values(), {"--version", "--help-all"}):
            found.append(f"{named} {flag}")
    return found


def test_every_flag_in_a_text_of_the_package_is_of_a_command() -> None:
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert {path.name: bad for path, text in texts.items() if (bad := not_there(text, None))} == {}


def commands_that_look(run: Path, data: Path | str) -> dict[str, tuple[Any, ...]]:
    return {
        "inspect": ("inspect", data, "-o", "found.json"),
        "evaluate": ("evaluate", run, data),
        "plan": ("plan", data, *TINY, "--stages", "all:1"),
        "export": ("export", run, "--data", data, "-o", "m.onnx"),
    }


def make(kind: str, pictures: Path) -> Path:
    data = Path("set")
    if kind == "a class in val alone":
        shutil.copytree(pictures, data)
        shutil.copytree(data / "val" / "disc", data / "val" / "ring")
        return data
    if kind == "one class":
        shutil.copytree(pictures / "train" / "disc", data / "disc")
        return data
    shutil.copytree(pictures / "train", data)
    if kind == "a class of one picture":
        for file in list((data / "disc").iterdir())[1:]:
            file.unlink()
    elif kind == "unreadable":
        for file in data.rglob("*.png"):
            file.write_bytes(b"GIF89a")
    else:
        (data / kind).mkdir()
    return data


KINDS = (
    "empty",
    "tench, Tinca tinca",
    'a "b", c',
    "a class of one picture",
    "a class in val alone",
    "one class",
    "unreadable",
)


@pytest.mark.parametrize("kind", KINDS)
def test_commands_advise_what_they_have(kind: str, run: Path, pictures: Path, cli: Cli) -> None:
    data = make(kind, pictures)
    for command, words in commands_that_look(run, data).items():
        result = cli(*words)
        assert not_there(result.err, command) == [], (command, result.err)
        advised = re.search(r"leave the class out with (--exclude .*)", result.err)
        if command == "plan" and kind in KINDS[:3]:
            assert result.code == 1
            assert advised
            assert cli(*words, *shlex.split(advised[1])).code == 0
        elif command in ("evaluate", "inspect") and kind != "unreadable":
            assert result.code == 0, result.err
