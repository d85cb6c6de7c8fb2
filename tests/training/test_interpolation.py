import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Averaging, Config, Stage
from transferkit.errors import UserError
from transferkit.events import EpochEnded
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import open_run
from transferkit.training.interpolation import SHARES, interpolated
from transferkit.verbs import finetune as verb

WithStages = Callable[..., Config]


def test_each_weight_goes_its_share_of_the_way_and_both_ends_are_exact() -> None:
    before, after = ({"w": torch.randn(50), "n": torch.tensor(n)} for n in (3, 7))
    found = interpolated(before, after, 0.3)
    torch.testing.assert_close(found["w"], 0.7 * before["w"] + 0.3 * after["w"])
    assert found["n"] == 7
    assert torch.equal(interpolated(before, after, 0.0)["w"], before["w"])
    assert torch.equal(interpolated(before, after, 1.0)["w"], after["w"])


def test_what_l1_has_at_zero_stays_zero_on_the_way() -> None:
    before, after = {"w": torch.ones(4)}, {"w": torch.tensor([0.0, 2.0, 0.0, 4.0])}
    found = interpolated(before, after, 0.5, ["w"])["w"]
    assert found.tolist() == [0.0, 1.5, 0.0, 2.5]
    assert interpolated(before, after, 0.5)["w"].tolist() == [0.5, 1.5, 0.5, 2.5]
    assert torch.equal(interpolated(before, after, 0.0, ["w"])["w"], before["w"])


@pytest.fixture
def config(with_stages: WithStages, tmp_path: Path) -> Callable[[Any], Config]:
    """Return a run of two stages on weights of a file, interpolated as told."""
    weights = tmp_path / "weights.pt"
    torch.save(
        create_backbone("test_efficientnet", pretrained=False, seed=5).model.state_dict(), weights
    )
    base = with_stages(Stage("head", 2, lr=0.05), Stage(3, 3))
    backbone = replace(base.backbone, pretrained=True, weights=weights)

    training = replace(base.training, restore_best=False)  # the last weights have moved for sure

    def make(share: Any) -> Config:
        averaging = Averaging(wise_ft=share)
        return replace(base, backbone=backbone, training=training, averaging=averaging)

    return make


def trained(config: Config, out: Path) -> dict[str, torch.Tensor]:
    verb.finetune(config, out, lambda event: None)
    return open_run(out).load_model()[1]


def test_a_run_ends_that_share_between_its_head_stage_and_its_end(
    config: Callable[[Any], Config], tmp_path: Path
) -> None:
    plain = trained(config(None), tmp_path / "plain")
    head = trained(replace(config(None), stages=config(None).stages[:1]), tmp_path / "head")
    for share in (0.0, 0.25, 1.0):
        found = trained(config(share), tmp_path / str(share))
        for name, tensor in interpolated(head, plain, share).items():
            torch.testing.assert_close(found[name], tensor)
    moved = [name for name in plain if not torch.equal(plain[name], head[name])]
    assert any(name.startswith("backbone.") for name in moved)


def test_auto_takes_what_validation_likes_best(
    config: Callable[[Any], Config], tmp_path: Path
) -> None:
    summary = verb.finetune(config("auto"), tmp_path / "auto", lambda event: None)
    rows = json.loads((tmp_path / "auto/interpolation.json").read_text())
    assert [row["share"] for row in rows] == list(SHARES)
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert summary.wise_ft == best["share"]
    assert summary.metrics["accuracy"] == pytest.approx(best["val_accuracy"])
    ends = [row["val_accuracy"] for row in (rows[0], rows[-1])]
    assert best["val_accuracy"] >= max(ends)


def test_an_interrupted_run_ends_between_the_same_weights(
    config: Callable[[Any], Config], tmp_path: Path
) -> None:
    whole = trained(config("auto"), tmp_path / "whole")

    def stop(event: Any) -> None:
        if isinstance(event, EpochEnded) and (event.stage, event.epoch) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="interrupted"):
        verb.finetune(config("auto"), tmp_path / "parts", stop)
    verb.resume(tmp_path / "parts", lambda event: None)
    parts = open_run(tmp_path / "parts").load_model()[1]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stages": "head:3"}, "every stage trains the head alone"),
        ({"stages": "1:3"}, "needs a first stage that trains the head alone"),
        ({"backbone.pretrained": False}, "needs a first stage that trains the head alone"),
    ],
)
def test_where_there_is_nothing_in_between_it_is_refused(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as told:
        load_config(None, (), {"averaging.wise_ft": 0.5, **options})
    assert told.value.exit_code == 2
