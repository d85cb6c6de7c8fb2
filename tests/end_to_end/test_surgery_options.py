from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transferkit.backbones.create import create_backbone

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 64,
        "--cache-dtype", "float32")  # fmt: skip


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


def test_reused_blocks_keep_their_weights_and_the_rest_starts_random(
    pictures: Path, cli: Cli
) -> None:
    start, other = (
        create_backbone("test_efficientnet", pretrained=False, image_size=32, seed=seed)
        for seed in (7, 0)
    )
    save_file(start.model.state_dict(), "start.safetensors")
    options = ("--backbone", "test_efficientnet", "--image-size", 32, "--weights")
    train = ("--reuse-blocks", 4, "--stages", "2:1@1e-9", "--views", 1, "--engine", "torch")
    result = cli(
        "finetune", pictures, *options, "start.safetensors", *train, "--out", "r", "--json"
    )
    assert result.code == 0, result.err
    assert [stage["cached"] for stage in result.json["stages"]] == [True]
    after = load_file("r/model.safetensors")
    expected = start.model.state_dict() | {
        name: tensor
        for name, tensor in other.model.state_dict().items()
        if name.startswith(("blocks.3", "blocks.4", "conv_head", "bn2"))
    }
    for name, tensor in expected.items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after[f"backbone.{name}"], tensor, atol=1e-6, rtol=0)
    assert "random (seed 0): blocks.3, blocks.4" in Path("r/model.json").read_text()
    again = cli("evaluate", "r", pictures, "--split", "val", "--json").json
    assert again["log_loss"] == pytest.approx(result.json["metrics"]["log_loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((*TINY, "--reuse-blocks", 2), "backbone.reuse_blocks needs pretrained weights"),
        (("--backbone", "mlp", "--reuse-blocks", 2), "backbone.reuse_blocks needs pretrained"),
        (("--reuse-blocks", 8), "--reuse-blocks 8 leaves no block group of the 8"),
        (("--reuse-blocks", 6, "--stages", "head:3"), "the first one trains head, on random"),
    ],
)
def test_reuse_without_sense_is_refused_before_pictures_are_read(
    options: tuple[object, ...], reason: str, cli: Cli
) -> None:
    result = cli("finetune", "nowhere", *options)
    assert result.code == 2
    assert reason in result.err
