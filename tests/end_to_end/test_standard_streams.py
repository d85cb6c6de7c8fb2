"""Standard streams that are closed, full or gone: nothing is lost but what could not be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transferkit.cli import prints_results

TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32", "--views", "1")
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(streams: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of transferkit with its streams redirected, as a shell does."""
    command = [sys.executable, "-m", "transferkit", *map(str, words)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    "streams", [">&- 2>&- <&-", pytest.param(">/dev/full 2>/dev/full", marks=FULL)]
)
def test_a_run_is_finished_though_nobody_can_read_it(pictures: Path, streams: str) -> None:
    done = shell(streams, "finetune", pictures, *TINY, "--stages", "1:1", "--out", "r")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {"summary.json", "model.safetensors", "report.html"} <= set(os.listdir("r"))
    for path in Path("r").rglob("*"):  # no file got the number of a closed stream
        assert path.is_dir() or b"stage 1" not in path.read_bytes(), path


def test_json_is_written_though_there_is_no_standard_error(run: Path, pictures: Path) -> None:
    done = shell("2>&-", "predict", run, pictures / "val" / "disc" / "0.png", "--json")
    assert (done.returncode, json.loads(done.stdout)["rows"]) == (0, 1)


@pytest.mark.parametrize(
    ("streams", "words", "code", "error"),
    [
        (">&-", ("recipes",), 1, "error: cannot write to standard output: Bad file descriptor\n"),
        (">&-", ("--version",), 1, "error: cannot write to standard output: Bad file "),
        (">&-", ("finetune", "nowhere", "--json"), 2, "error: "),
        (">&- 2>&-", ("recipes", "--json"), 1, ""),
        pytest.param(
            *(">/dev/full", ("recipes", "--json"), 1),
            "error: cannot write to standard output: No space left on device\n",
            marks=FULL,
        ),
    ],
)
def test_what_was_asked_for_and_could_not_be_written_is_told(
    streams: str, words: tuple[str, ...], code: int, error: str
) -> None:
    done = shell(streams, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(error)
    assert done.stderr.count("error:") == bool(error)


def test_a_reader_that_has_seen_enough_is_no_mishap() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "transferkit", "recipes"]
    done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_list_on_a_closed_standard_input_is_empty(run: Path) -> None:
    done = shell("<&-", "predict", run, "-")
    assert "bug" not in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("finetune d", False),
        ("finetune d --json", True),
        ("finetune --help", True),
        ("predict r p", True),
        ("predict r p --output a.csv", False),
        ("predict r p --output=a.csv", False),
        ("predict r p -oa.csv", False),
        ("predict r p -o a.csv --json", True),
        ("evaluate r d", True),
        ("", True),
    ],
)
def test_results_that_a_file_keeps_need_no_reader(words: str, expected: bool) -> None:
    assert prints_results(words.split()) == expected
