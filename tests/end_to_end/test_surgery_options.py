from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 64)


def test_a_changed_backbone_trains_and_reloads(pictures: Path, cli: Cli) -> None:
    changes = ("--pooling", "catavgmax", "--drop-top-blocks", 2, "--replace-activations", "prelu")
    result = cli("finetune", pictures, *TINY, *changes, "--stages", "all:1,1:1", "--views", 1,
                 "--out", "r", "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert [stage["cached"] for stage in result.json["stages"]] == [False, True]
    again = cli("evaluate", "r", pictures, "--split", "val", "--json").json
    assert again["log_loss"] == pytest.approx(result.json["metrics"]["log_loss"], abs=1e-4)


def test_what_the_backbone_cannot_do_is_refused_before_pictures_are_read(cli: Cli) -> None:
    result = cli("finetune", "nowhere", *TINY, "--drop-top-blocks", 99)
    assert result.code == 2
    assert result.message[0].startswith("error: --drop-top-blocks 99: test_efficientnet has")
