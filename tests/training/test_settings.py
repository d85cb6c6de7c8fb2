"""Every way to configure the optimisation changes a run, and what cannot work is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from transferkit.errors import UserError
from transferkit.recipes.reading import load_config
from transferkit.training.optimizers import OPTIMIZERS
from transferkit.training.schedules import SCHEDULES
from transferkit.training.settings import loop_settings
from transferkit.training.stage_checks import cycle_notices
from transferkit.training.stages import PlannedStage

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"optimizer {n}": {"optimizer.name": n} for n in OPTIMIZERS if n not in ("adamw", "adam")},
    "optimizer adam": {"optimizer.name": "adam", "training.weight_decay": 0.5},
    "optimizer timm:lion": {"optimizer.name": "timm:lion"},
    "beta1": {"optimizer.beta1": 0.5},
    **{f"schedule {n}": {"schedule.name": n} for n in SCHEDULES if n not in ("cosine",)},
    "every epoch": {"schedule.every": "epoch"},
    "clip value": {"clipping.value": 1e-4},
    "clip norm": {"clipping.norm": 1e-4},
    "clip adaptive": {"clipping.adaptive": 1e-4},
    "backbone l1": {"regularization.backbone_l1": 1e-1},
    "backbone l2": {"regularization.backbone_l2": 1.0},
    "head l1": {"regularization.head_l1": 1e-1},
    "head l2": {"regularization.head_l2": 1.0},
    "backbone decay": {"regularization.backbone_weight_decay": 5.0},
    "head decay": {"regularization.head_weight_decay": 5.0},
    "max norm": {"regularization.max_norm": 1e-3},
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"averaging.ema": 0.9, "averaging.swa": 0.5}, "averaging.ema and averaging.swa exclude"),
    ({"averaging.swa": 0.5, "training.patience": 3}, "training.patience has no effect"),
    ({"training.lr": "auto", "stages": "head:3@1e-3"}, "training.lr = auto has no effect"),
    (
        {"training.lr": "auto", "training.unfrozen_lr": 0.1, "backbone.pretrained": False},
        "training.unfrozen_lr has no effect with training.lr = auto",
    ),
    ({"optimizer.name": "adm"}, "optimizer.name must be one of"),
    ({"optimizer.name": "timm:nothing"}, "optimizer.name is none of timm's"),
    ({"optimizer.momentum": 0.8}, "optimizer.momentum has no effect"),
    ({"optimizer.name": "sgd", "optimizer.momentum": 0.9}, "use --optimizer momentum"),
    ({"optimizer.name": "sgd", "optimizer.eps": 0.1}, "optimizer.eps has no effect"),
    ({"schedule.power": 2.0}, "schedule.power has no effect"),
    ({"schedule.name": "piecewise", "schedule.boundaries": [0.7, 0.2]}, "boundaries must rise"),
    ({"schedule.name": "piecewise", "schedule.values": [0.7, 0.2]}, "one more than"),
    ({"schedule.name": "performance", "schedule.every": "epoch"}, "schedule.every has no effect"),
    ({"schedule.name": "1cycle", "optimizer.beta1": 0.8}, "optimizer.beta1 has no effect"),
    (
        {"schedule.name": "performance", "schedule.patience": 7},
        "schedule.patience 7 never acts: early stopping ends a stage after training.patience 8",
    ),
    ({"clipping.norm": 1.0, "clipping.value": 1.0}, "clipping.value and clipping.norm exclude"),
    ({"regularization.l2_sp": 1.0, "backbone.pretrained": False}, "regularization.l2_sp needs"),
    ({"regularization.l2_sp": 1.0, "stages": "head:3"}, "regularization.l2_sp has no effect"),
    ({"clipping.adaptive": 0.1, "stages": "head:3"}, "clipping.adaptive has no effect"),
    ({"regularization.max_norm_of": "all"}, "regularization.max_norm_of has no effect"),
]


@pytest.mark.parametrize(("given", "reason"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_work_is_refused_with_its_key(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, (), given)
    assert reason in caught.value.what + caught.value.where
    assert caught.value.exit_code == 2


def test_a_performance_schedule_that_acts_is_taken() -> None:
    given = {"schedule.name": "performance", "schedule.patience": 7}
    for more in (
        {"schedule.patience": 6},  # falls after the seventh epoch, the last runs slower
        {"training.patience": 9},
        {"schedule.scope": "run"},  # the next stage runs slower
        {"averaging.swa": 0.5},
        {"training.budget": "9m"},
    ):
        load_config(None, (), given | more)


def test_one_cycle_has_no_other_warm_up_unless_it_is_wanted() -> None:
    def first(**given: Any) -> float:
        flags = {key.replace("__", "."): value for key, value in given.items()}
        return loop_settings(load_config(None, (), flags)).schedule.at(0.0)[0]

    assert first(schedule__name="1cycle") == 0.1
    assert first(schedule__name="1cycle", schedule__cycle_start=0.25) == 0.25
    assert first(schedule__name="1cycle", training__warmup=0.2) == 0
    assert first(schedule__name="linear") == 0
    assert loop_settings(load_config()).schedule.warmup == 0.1


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, True), ({"training.patience": 30}, False), ({"averaging.swa": 0.5}, False)],
)
def test_a_cycle_that_may_be_cut_is_told(given: dict[str, Any], told: bool) -> None:
    config = load_config(None, (), {"schedule.name": "1cycle"} | given)
    stages = [PlannedStage("solve", 100, 1.0, (0.0, 1.0), solves=True)]
    stages.append(PlannedStage("head", 30, 1.0, (0.0, 1.0)))
    notices = list(cycle_notices(config, stages))
    assert [notice.warning for notice in notices] == [True] * told
    assert all("--patience 30 lets every cycle end" in notice.text for notice in notices)
    assert not list(cycle_notices(load_config(), stages))


def test_l2_beside_weight_decay_is_told() -> None:
    def told(**given: Any) -> list[str]:
        flags = {key.replace("__", "."): value for key, value in given.items()}
        return [notice.text for notice in cycle_notices(load_config(None, (), flags), [])]

    text = "head: L2 0.01 acts beside a weight decay of 0.05; --head-weight-decay 0 leaves L2 alone"
    assert told(regularization__head_l2=0.01) == [text]
    assert told(regularization__head_l2=0.01, training__weight_decay=0.0) == []
    assert told(regularization__head_l2=0.01, regularization__head_weight_decay=0.1) == []
    assert told(regularization__head_l2=0.01, optimizer__name="adam") == []
    assert told() == []


def test_weight_decay_is_zero_where_it_would_join_the_gradient() -> None:
    def decays(**given: Any) -> tuple[float, float]:
        flags = {key.replace("__", "."): value for key, value in given.items()}
        return loop_settings(load_config(None, (), flags)).rules.weight_decays

    assert decays() == (0.05, 0.05)
    assert decays(optimizer__name="adam") == (0, 0)
    assert decays(optimizer__name="adam", training__weight_decay=0.1) == (0.1, 0.1)
    assert decays(regularization__head_weight_decay=0.3) == (0.05, 0.3)


@pytest.fixture(scope="module")
def plain(ran: Callable[..., Any]) -> Any:
    return ran({})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_configured_run_differs(name: str, ran: Callable[..., Any], plain: Any) -> None:
    rows = ran(VARIANTS[name])
    assert [r["val_loss"] for r in rows] != [r["val_loss"] for r in plain]
    assert ("clipped" in rows[0]) == name.startswith("clip")
    assert ("momentum" in rows[0]) == (name == "schedule 1cycle")
    if name.startswith("clip"):
        assert all(0 < row["clipped"] <= 1 for row in rows)
