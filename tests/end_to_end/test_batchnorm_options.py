"""--batchnorm: what becomes of the statistics in frozen and in unfrozen blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import update_bn

from transferkit.backbones.create import create_backbone
from transferkit.finetuning.first_pass import shuffled_batches
from transferkit.finetuning.preparation import prepare
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import open_run
from transferkit.training import loop

Cli = Callable[..., Any]
SHORT = (
    "--stages",
    "head:1@1e-2,1:2@1e-2,2:1",
    "--views",
    1,
    "--batch-size",
    6,
    "--engine",
    "torch",
)
TOP = {"blocks.3", "blocks.4", "conv_head", "bn2"}


@pytest.fixture
def start(own_folder: Path) -> dict[str, Tensor]:
    """Weights of a backbone whose statistics are of other pictures, also in start.safetensors."""
    backbone = create_backbone("test_efficientnet", pretrained=False, image_size=32)
    generator = torch.Generator().manual_seed(0)
    list_of = backbone.model.state_dict()
    for name, tensor in list_of.items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.5)
    save_file(list_of, own_folder / "start.safetensors")
    return {name: tensor.clone() for name, tensor in list_of.items()}


def train(cli: Cli, pictures: Path, out: str, *options: object) -> dict[str, Tensor]:
    weights = ("--backbone", "test_efficientnet", "--weights", "start.safetensors")
    arguments = (*weights, "--image-size", 32, *SHORT, *options)
    result = cli("finetune", pictures, *arguments, "--out", out, "--no-restore-best")
    assert result.code == 0, result.err
    tensors = load_file(f"{out}/model.safetensors")
    prefix = "backbone."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def moved(before: dict[str, Tensor], after: dict[str, Tensor], kind: str) -> set[str]:
    """Return the block groups in which tensors of a kind differ."""
    names = [n for n in before if kind in n and not torch.equal(before[n], after[n])]
    return {
        ".".join(n.split(".")[:2]) if n.startswith("blocks") else n.split(".")[0] for n in names
    }


def test_statistics_follow_train_or_stay(
    pictures: Path, cli: Cli, start: dict[str, Tensor]
) -> None:
    after = train(cli, pictures, "train")
    assert moved(start, after, "running_mean") == {"blocks.3", "blocks.4", "bn2"}
    after = train(cli, pictures, "frozen", "--batchnorm", "frozen")
    assert moved(start, after, "running") == set()
    assert moved(start, after, "num_batches") == set()
    assert moved(start, after, "weight") == TOP  # they do train otherwise


def test_recalibrated_ones_are_those_of_the_training_pictures(
    pictures: Path, cli: Cli, start: dict[str, Tensor]
) -> None:
    after = train(cli, pictures, "r", "--batchnorm", "recalibrate")
    assert moved(start, after, "weight") == TOP
    expected = create_backbone(
        "test_efficientnet", weights=Path("start.safetensors"), image_size=32
    )
    session = prepare(config_of(open_run(Path("r"))), lambda _: None)
    images = list(shuffled_batches(session.material, 0))
    assert sum(map(len, images)) == len(session.material.train)
    update_bn([session.classifier.normalize(batch) for batch in images], expected.model)
    measured = expected.model.state_dict()
    frozen = [n for n in measured if not n.startswith(tuple(TOP))]
    for name in frozen:
        torch.testing.assert_close(after[name], measured[name], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_recalibrates_to_the_same(
    pictures: Path, cli: Cli, start: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(cli, pictures, "whole", "--batchnorm", "recalibrate")
    save, calls = loop.save_last, []

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_last", interrupted)
        with pytest.raises(AssertionError):
            train(cli, pictures, "cut", "--batchnorm", "recalibrate")
    assert len(calls) == 2
    assert cli("finetune", "--resume", "cut").code == 0
    cut = load_file("cut/model.safetensors")
    assert all(torch.equal(cut[f"backbone.{name}"], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--backbone", "test_vit", "--batchnorm", "recalibrate"), "test_vit has no batch norm"),
        (("--no-pretrained", "--batchnorm", "frozen"), "training.batchnorm frozen needs"),
        (("--batchnorm", "frozen", "--stages", "head:2"), "training.batchnorm frozen has no"),
    ],
)
def test_what_has_no_effect_is_refused_before_pictures_are_read(
    options: tuple[object, ...], reason: str, cli: Cli
) -> None:
    result = cli("finetune", "nowhere", *options)
    assert result.code == 2
    assert reason in result.err
