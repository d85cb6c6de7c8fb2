"""How often checkpoints are written never shows in what a run becomes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit.config import Averaging, Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.runs.folder import open_run
from transferkit.training import run as run_module
from transferkit.training.checkpoints import copied
from transferkit.training.run import Unsaved
from transferkit.verbs import finetune as verb
from transferkit.verbs.finetune import finetune, resume

ALWAYS, NEVER = math.inf, 1e-12
MODEL = "model.safetensors"


pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def config(tiny_config: Config) -> Config:
    averaging = Averaging(ema=0.9)
    return replace(tiny_config, averaging=averaging, stages=(Stage(1, 6), Stage(3, 2)))


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda value: monkeypatch.setattr(run_module, "CHECKPOINT_SHARE", value)


def stop_after(epochs: int) -> Callable[[Event], None]:
    left = [epochs]

    def show(event: Event) -> None:
        left[0] -= isinstance(event, EpochEnded)
        if not left[0]:
            raise KeyboardInterrupt

    return show


def figures(run: Path) -> list[dict[str, Any]]:
    rows = open_run(run).read_metrics()
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_writing_takes_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    unsaved, spent = Unsaved(), 0.0
    while now[0] < 1100:
        if unsaved.is_due:
            started = now[0]
            now[0] += 0.5
            unsaved.written(started)
            spent += 0.5
        now[0] += 0.1  # an epoch
    assert 0.04 < spent / 1000 <= 0.05


def test_a_slow_epoch_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    unsaved = Unsaved()
    assert unsaved.is_due
    unsaved.written(-0.5)
    now[0] = 9.9
    assert not unsaved.is_due
    now[0] = 10
    assert unsaved.is_due


def test_what_is_kept_is_not_what_goes_on_training() -> None:
    state = {"step": 3, "groups": [{"betas": (0.9, 0.99)}], "mean": torch.ones(2)}
    kept = copied(state)
    state["mean"] += 1  # type: ignore[operator]
    assert kept["mean"].tolist() == [1, 1]
    assert kept["groups"] == [{"betas": (0.9, 0.99)}]


def test_how_often_is_written_changes_nothing(
    config: Config, share: Callable[[float], None], tmp_path: Path
) -> None:
    for name, value in (("always", ALWAYS), ("never", NEVER)):
        share(value)
        finetune(config, tmp_path / name, lambda _: None)
    always, never = tmp_path / "always", tmp_path / "never"
    assert (always / MODEL).read_bytes() == (never / MODEL).read_bytes()
    assert figures(always) == figures(never)
    for kind in ("best", "last"):
        ours, theirs = (open_run(run).load_checkpoint(kind) for run in (always, never))
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)


def test_an_interrupt_loses_nothing(
    config: Config, share: Callable[[float], None], tmp_path: Path
) -> None:
    share(NEVER)
    with pytest.raises(UserError, match="interrupted; every finished epoch is saved"):
        finetune(config, tmp_path / "run", stop_after(4))
    assert len(figures(tmp_path / "run")) == 4
    saved = open_run(tmp_path / "run").load_checkpoint("last")
    assert saved is not None
    assert saved["state"]["epoch"] == 4


@pytest.mark.parametrize("epochs", [4, 7])
def test_a_killed_run_does_its_last_epochs_again(
    epochs: int,
    config: Config,
    share: Callable[[float], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share(NEVER)
    finetune(config, tmp_path / "whole", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(verb, "write_unsaved", lambda _: None)  # a killed process does not get there
        with pytest.raises(UserError, match="interrupted"):
            finetune(config, tmp_path / "run", stop_after(epochs))
    saved = open_run(tmp_path / "run").load_checkpoint("last")
    assert saved is not None
    state = saved["state"]
    assert (state["stage"], state["epoch"]) == ((0, 1) if epochs == 4 else (1, 0))
    resume(tmp_path / "run", lambda _: None)
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
