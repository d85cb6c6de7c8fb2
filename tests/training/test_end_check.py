"""A run never ends with weights that are not its best, or that its epochs contradict."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transferkit.config import Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.runs.folder import open_run
from transferkit.training import loop
from transferkit.training.end_check import require_as_recorded
from transferkit.verbs.finetune import finetune, resume

pytestmark = pytest.mark.usefixtures("without_plots")


def silent(event: Event) -> None:
    pass


def run_with(pictures: int, **values: Any) -> Any:
    """Return what the check reads of a run whose best epoch is its first of two."""
    rows = [
        {"stage": 0, "best": 1, "val_accuracy": 0.8, "val_loss": 0.5},
        {"stage": 0, "best": 0, "val_accuracy": 0.6, "val_loss": 1.0},
    ]
    known = {
        "plan": SimpleNamespace(stages=[SimpleNamespace(solves=False)]),
        "interpolation": [],
        "interpolated": None,
        "state": SimpleNamespace(rows=rows),
        "settings": SimpleNamespace(restore_best=True),
        "material": SimpleNamespace(val=range(pictures)),
        "folder": SimpleNamespace(path="runs/one"),
    }
    return SimpleNamespace(**known | values)


def test_rounding_may_let_a_few_pictures_be_answered_otherwise() -> None:
    require_as_recorded(run_with(100), 0.8, 0.5)
    require_as_recorded(run_with(100), 0.82, 0.59)
    require_as_recorded(run_with(10), 0.6, 0.5)  # two of ten
    require_as_recorded(run_with(5000), 0.7801, 0.41)
    last = SimpleNamespace(restore_best=False)
    require_as_recorded(run_with(100, settings=last), 0.6, 1.0)
    between = [{"share": 0.3, "val_accuracy": 0.9, "val_loss": 0.3}]
    require_as_recorded(run_with(100, interpolation=between, interpolated=0.3), 0.9, 0.3)


@pytest.mark.parametrize(
    ("accuracy", "loss"),
    [(0.77, 0.5), (0.83, 0.5), (0.8, 0.61), (0.8, 0.39), (math.nan, 0.5), (0.8, math.nan)],
)
def test_more_is_a_contradiction(accuracy: float, loss: float) -> None:
    with pytest.raises(UserError, match="contradicts what its epochs recorded") as told:
        require_as_recorded(run_with(100), accuracy, loss)
    assert told.value.exit_code == 1
    assert "--recipe runs/one" in told.value.remedy


def test_a_run_that_forgets_to_restore_its_best_weights_says_so(
    with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "restore", lambda run, kind: {})
    config = with_stages(Stage(1, 1), Stage(3, 1, lr=9.0))
    with pytest.raises(UserError, match="other weights than those of its best epoch") as told:
        finetune(config, tmp_path / "run", silent)
    assert told.value.exit_code == 1
    assert not open_run(tmp_path / "run").has_model


def test_a_best_checkpoint_that_is_not_what_was_recorded_is_not_passed_off_as_it(
    with_stages: Callable[..., Config], tmp_path: Path
) -> None:
    """As an earlier release left it behind, which saved half-trained weights as the best."""

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.stage == 1:
            raise KeyboardInterrupt

    config = with_stages(Stage(1, 1), Stage(3, 1))
    with pytest.raises(UserError, match="interrupted"):
        finetune(config, tmp_path / "run", stop)
    folder = open_run(tmp_path / "run")
    best = folder.load_checkpoint("best")
    assert best is not None
    head = [n for n, t in best["model"].items() if n.startswith("head.") and t.ndim == 2]
    best["model"][head[-1]] *= -50
    folder.save_checkpoint("best", best)
    with pytest.raises(UserError, match="contradicts what its epochs recorded") as told:
        resume(tmp_path / "run", silent)
    assert told.value.exit_code == 1
    assert not folder.has_model
