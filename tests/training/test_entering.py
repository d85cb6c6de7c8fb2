"""A stage is entered once, wherever the run is stopped: what it starts from stays what it was."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Averaging, Cache, Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.finetuning.preparation import prepare
from transferkit.runs.folder import RunFolder, open_run
from transferkit.training import boundary_cache, loop
from transferkit.training.budget import Budget, StageCost
from transferkit.training.checkpoints import continue_run, save_last
from transferkit.training.run import RunState, make_run
from transferkit.verbs.finetune import finetune, resume

MODEL = "model.safetensors"
STEPS = 3  # of an epoch
Stopped = Callable[..., AbstractContextManager[None]]

pytestmark = pytest.mark.usefixtures("without_plots")


def silent(event: Event) -> None:
    pass


@pytest.fixture
def worsening(with_stages: Callable[..., Config]) -> Config:
    """The second stage makes it worse, so that the third one does not run."""
    return with_stages(Stage(1, 1), Stage(3, 1, lr=9.0), Stage("all", 1, if_improving=True))


@pytest.fixture
def before_unfreezing(with_stages: Callable[..., Config], tmp_path: Path) -> Config:
    """The end is what was before the second stage."""
    weights = tmp_path / "weights.pt"
    backbone = create_backbone("test_efficientnet", pretrained=False, seed=5)
    torch.save(backbone.model.state_dict(), weights)
    config = with_stages(Stage("head", 1, lr=0.05), Stage(3, 1))
    return replace(
        config,
        backbone=replace(config.backbone, pretrained=True, weights=weights),
        averaging=Averaging(wise_ft=0.0),
    )


@pytest.mark.parametrize("name", ["worsening", "before_unfreezing"])
def test_a_stage_that_is_stopped_in_its_first_epoch_is_not_entered_again(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, stopped_after: Stopped
) -> None:
    config = request.getfixturevalue(name)
    finetune(config, tmp_path / "whole", silent)
    with stopped_after(STEPS + 2, loop), pytest.raises(UserError, match="every finished step"):
        finetune(config, tmp_path / "run", silent)
    kinds = ("best", *(["start"] if config.averaging.wise_ft is not None else []))
    kept = {kind: open_run(tmp_path / "run").load_checkpoint(kind) for kind in kinds}
    with stopped_after(1, loop), pytest.raises(UserError, match="every finished step"):
        resume(tmp_path / "run", silent)
    for kind, before in kept.items():
        after = open_run(tmp_path / "run").load_checkpoint(kind)
        assert before is not None
        assert after is not None
        torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    resume(tmp_path / "run", silent)
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    ours, theirs = (open_run(tmp_path / n).read_json("summary") for n in ("run", "whole"))
    assert ours["metrics"] == theirs["metrics"]
    for told, expected in zip(ours["stages"], theirs["stages"], strict=True):
        assert (told["reason"], told["epochs"]) == (expected["reason"], expected["epochs"])


def test_a_resumed_run_goes_on_with_what_its_budget_has_planned_and_learned(
    tiny_config: Config, tmp_path: Path
) -> None:
    parts = prepare(tiny_config, silent)
    cost = StageCost(2, 1, 1.0, 900.0, 9.0)
    budget = Budget(3600.0, 5.0, [cost] * 3, [1.0, 2.0, 0.0], 2)
    (tmp_path / "run").mkdir()
    run = make_run(parts, RunFolder(tmp_path / "run"), budget)
    run.budget = replace(budget, costs=[cost] * 3)
    run.budget.learn(0, 100.0, 5.0, 1.0)
    run.budget.learn_setup(4.0, 7.0)
    run.state.epochs, run.state.entered = [3.0, 1.5, 0.0], 0
    save_last(run)
    again = make_run(parts, RunFolder(tmp_path / "run"), budget)
    assert continue_run(again)
    assert again.budget == run.budget != budget
    assert (again.state.epochs, again.state.entered) == ([3.0, 1.5, 0.0], 0)


def test_a_checkpoint_of_an_earlier_release_says_what_it_knows() -> None:
    """It was saved where a stage starts, at the end of an epoch, or within one."""

    def entered(**values: Any) -> int:
        known = asdict(RunState(stage=2, **values))
        del known["entered"], known["budget"]
        return RunState.from_dict(known).entered

    assert entered() == 1
    assert [entered(epoch=1), entered(halvings=1), entered(midway={"tally": {}})] == [2] * 3


class Room:
    """A disk whose free space a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**12
        used = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=self.free))
        monkeypatch.setattr(boundary_cache, "shutil", used)


def stop_after_an_epoch(event: Event) -> None:
    if isinstance(event, EpochEnded):
        raise KeyboardInterrupt


def test_a_run_whose_cache_fits_no_more_goes_on_to_the_same_weights_or_not_at_all(
    with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(with_stages(Stage(1, 2)), cache=Cache())  # half precision: live is otherwise
    room = Room(monkeypatch)
    finetune(config, tmp_path / "cached", silent)
    with pytest.raises(UserError, match="interrupted"):
        finetune(config, tmp_path / "run", stop_after_an_epoch)
    room.free = 0
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="without its cached activations") as told:
        resume(tmp_path / "run", silent)
    assert told.value.exit_code == 1
    assert "the disk has 0.00 GB" in told.value.where
    assert f"make room in {tmp_path / 'elsewhere'}, then --resume" in told.value.remedy
    room.free = 10**12
    resume(tmp_path / "run", silent)
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "cached" / MODEL).read_bytes()


def test_a_run_that_began_live_stays_so_though_there_is_room_now(
    with_stages: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(with_stages(Stage(1, 2)), cache=Cache())
    room = Room(monkeypatch)
    room.free = 0
    finetune(config, tmp_path / "live", silent)
    with pytest.raises(UserError, match="interrupted"):
        finetune(config, tmp_path / "run", stop_after_an_epoch)
    room.free = 10**12
    resume(tmp_path / "run", silent)
    assert [row["cached"] for row in open_run(tmp_path / "run").read_metrics()] == [0, 0]
    assert (tmp_path / "run" / MODEL).read_bytes() == (tmp_path / "live" / MODEL).read_bytes()
