"""Whenever a run is stopped or killed, it ends as an undisturbed one: weights, rows, summary."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import CONFIGURATIONS, PRETRAINING, SAMPLE

import transferkit

SCRIPT = Path(__file__).with_name("every_step.py")
ENDS: dict[str, list[str]] = {
    "three stages": ["finished"] * 3,
    "worsens": ["finished", "finished", "skipped: the stage before did not improve validation"],
    "improves": ["finished"] * 3,
    "impatient": ["stopped early", "finished"],
    "rewound too often": ["finished", "diverged"],
    "stops on divergence": ["finished", "diverged"],
}
"""Configuration -> how its stages end, where it would attack nothing otherwise."""


def attacked(folder: Path, wanted: dict[str, int]) -> list[dict[str, Any]]:
    """Attack configurations with one of so many trials each; return what came out."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(transferkit.__file__).parents[1])  # the one that the tests import
    told = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder)]
        + [f"{name}={every}" for name, every in wanted.items()],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        check=True,
    )
    return [json.loads(line) for line in told.stdout.splitlines()]


def require_the_same(found: list[dict[str, Any]], tally: Callable[..., None]) -> None:
    """Fail with all that differs from an undisturbed run; note how much was tried."""
    wrong = [f"{each['name']}: {text}" for each in found for text in each["wrong"]]
    for each in found:
        held = each["trials"] - len(each["wrong"])
        tally(f"resumed, {each['name']}", tried=each["trials"], held=held)
    trials = sum(each["trials"] for each in found)
    print(f"{len(found)} configurations, {trials} trials, {len(wrong)} mismatches")
    assert not wrong, "\n".join(wrong)
    for each in found:
        assert each["trials"] > 0
        assert each["stages"] == ENDS.get(each["name"], each["stages"])


@pytest.fixture
def ground(pictures: Path, tmp_path: Path) -> Path:
    (tmp_path / "pictures").symlink_to(pictures)
    return tmp_path


def test_a_run_that_is_stopped_anywhere_ends_as_an_undisturbed_one(
    ground: Path, tally: Callable[..., None]
) -> None:
    require_the_same(attacked(ground, SAMPLE), tally)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGURATIONS, *PRETRAINING])
def test_a_run_that_is_stopped_at_every_step_ends_as_an_undisturbed_one(
    name: str, ground: Path, tally: Callable[..., None]
) -> None:
    require_the_same(attacked(ground, {name: 1}), tally)
