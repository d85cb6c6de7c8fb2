"""A ground to let misfortunes happen on: scenarios, and runs in forks of one process."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ZYGOTE = Path(__file__).with_name("zygote.py")
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32", "--views", "1")
SMALL = ("--image-size", "32", "--epochs", "3", "--batch-size", "8", "--seed", "3")


@dataclass(frozen=True)
class Scenario:
    """A command that something befalls, and what there must be in the end.

    argv: of the command. again: what a person runs to go on, where something of it is there.
    kept: files that are to be, bit for bit, those of an undisturbed run. rows: a CSV file that
    grows with what is finished. before: a command to run first.
    """

    name: str
    argv: tuple[str, ...]
    again: tuple[str, ...]
    kept: tuple[str, ...]
    rows: str = ""
    before: tuple[str, ...] = ()


FINETUNE = ("finetune", "pictures", *TINY, "--stages", "1:2@1e-2,3:2@5e-3,all:2@5e-3")
PRETRAIN = ("pretrain", "pictures", "--backbone", "cnn", "--backbone-width", "4", *SMALL)
MODEL = ("r/model.safetensors",)
SCENARIOS = (
    Scenario(
        "finetune",
        (*FINETUNE, "--out", "r"),
        ("finetune", "--resume", "r"),
        (*MODEL, "r/predictions.csv", "r/calibration.json", "r/reference.safetensors"),
        "r/metrics.csv",
    ),
    Scenario(
        "pretrain",
        (*PRETRAIN, "--method", "byol", "--out", "r"),
        ("pretrain", "--resume", "r"),
        MODEL,
        "r/metrics.csv",
    ),
    Scenario(
        "predict",
        ("predict", "r", "pictures/val", "-o", "p.csv"),
        ("predict", "r", "pictures/val", "-o", "p.csv", "--skip-existing"),
        ("p.csv", *MODEL),
        before=(*FINETUNE, "--out", "r"),
    ),
    Scenario(
        "export",
        ("export", "r", "-o", "x.onnx"),
        ("export", "r", "-o", "x.onnx"),
        ("x.onnx", *MODEL),
        before=(*FINETUNE, "--out", "r"),
    ),
)


@dataclass
class Zygote:
    """Runs transferkit in forks of one process."""

    process: subprocess.Popen[str]

    def run(self, argv: tuple[str, ...], cwd: Path, fault: dict[str, Any] | None = None) -> Any:
        """Return how it ended: code, writes, pictures, seconds and err, what it said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"argv": argv, "cwd": str(cwd), "fault": fault}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        return told | {"err": (cwd / "err.txt").read_text(errors="replace")}


@dataclass
class Ground:
    """A folder where a scenario has run undisturbed, and everything before it is in place."""

    scenario: Scenario
    folder: Path
    writes: int = 0
    pictures: int = 0
    seconds: float = 0.0
    expected: dict[str, str] = field(default_factory=dict)

    def fresh(self, name: str) -> Path:
        """Return a folder as it was before the scenario ran."""
        made = self.folder / name
        shutil.copytree(self.folder / "start", made)
        return made


def hashes(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return name -> SHA-256 of files, "" where there is none."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if (folder / name).is_file()
        else ""
        for name in names
    }
