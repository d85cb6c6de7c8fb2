import io
import json
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from transferkit.cli import main
from transferkit.stopping import STOPPING

SAMPLES = Path(__file__).resolve().parents[2] / "data_samples"
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")


@dataclass(frozen=True)
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON: one object, and nothing else."""
        return json.loads(self.out)

    @property
    def message(self) -> list[str]:
        """The lines of the error message."""
        return [line.strip() for line in self.err.splitlines()]


def call(*arguments: object) -> Result:
    """Run a command of transferkit in this process, as the shell would."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in STOPPING}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["transferkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
    for number, handler in before.items():
        signal.signal(number, handler)
    result = Result(int(left.value.code or 0), out.getvalue(), err.getvalue())
    assert "bug in transferkit" not in result.out + result.err
    assert "Traceback" not in result.out + result.err
    return result


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    return call


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: two stages of a tiny random network on three classes."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(root / "cache"))
        stages = ("--stages", "1:3@1e-2, 3:2", "--views", "1", "--batch-size", "6")
        result = call("finetune", pictures, *TINY, *stages, "--out", root / "run")
    assert result.code == 0, result.err
    return root / "run"


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of data_samples: 3 classes with 8 training and 4 validation pictures each."""
    root = tmp_path_factory.mktemp("samples")
    for split, count in (("train", 8), ("val", 4)):
        for name in ("animal", "food", "vehicle"):
            (root / split / name).mkdir(parents=True)
            for file in sorted((SAMPLES / split / name).iterdir())[:count]:
                shutil.copy(file, root / split / name)
    return root


@pytest.fixture(scope="session")
def other(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second finished run on the same pictures, of one stage."""
    root = tmp_path_factory.mktemp("compared")
    options = ("--stages", "1:2@1e-2", "--views", "1", "--batch-size", "5")
    cache = ("--cache-dir", root / "cache")
    assert call("finetune", pictures, *TINY, *options, *cache, "--out", root / "run").code == 0
    return root / "run"
