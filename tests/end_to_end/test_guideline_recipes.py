"""The guideline recipes as shipped, on a tiny input: each runs, and does what it is there for."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from transferkit.backbones.create import create_backbone
from transferkit.recipes.reading import read_recipe, shipped_recipes
from transferkit.runs.folder import RunFolder

Cli = Callable[..., Any]
RECIPES = shipped_recipes()
ON_PRETRAINED = ("sparse", "low_latency", "risk_sensitive", "imbalanced", "high_accuracy")
FROM_SCRATCH = ("default_dnn", "self_normalizing", "batchnorm_high_lr")


def short_plan(name: str) -> str:
    """The recipe's stages, one epoch each."""
    stages = read_recipe(RECIPES[name])["stages"]
    return ", ".join(f"{s['unfreeze']}:1@{s['lr']}" for s in stages)


@pytest.fixture
def trained(
    pictures: Path, cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run a recipe in short on a tiny backbone, without plots; return the summary."""
    for plot in ("curves", "learning_rates", "confusion", "inside", "reliability", "write_report"):
        monkeypatch.setattr(f"transferkit.verbs.finetune.{plot}", lambda *_: None)
    monkeypatch.setattr(RunFolder, "save_plot", lambda *_: None)
    model = create_backbone("test_efficientnet", pretrained=False, image_size=32).model
    save_file(model.state_dict(), own_folder / "start.safetensors")

    def run(name: str, *options: object) -> dict[str, Any]:
        tiny: tuple[object, ...] = ("--image-size", 32, "--batch-size", 6, "--views", 1)
        if name in ON_PRETRAINED:
            tiny += ("--backbone", "test_efficientnet", "--weights", "start.safetensors")
        if name != "few_labels":
            tiny += ("--stages", short_plan(name))
        level = read_recipe(RECIPES[name]).get("augment", {}).get("level")
        tiny += ("--augment", "light") if level == "none" else ()
        result = cli(
            "finetune", pictures, "--recipe", name, *tiny, *options, "--json", "--out", "r"
        )
        assert result.code == 0, result.err
        found: dict[str, Any] = result.json
        return found

    return run


def tensors() -> dict[str, torch.Tensor]:
    return load_file("r/model.safetensors")


def kept() -> dict[str, Any]:
    return tomllib.loads(Path("r/recipe.toml").read_text())


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_from_scratch(name: str, trained: Callable[..., dict[str, Any]]) -> None:
    (stage,) = trained(name)["stages"]
    assert (stage["name"], stage["cached"]) == ("all", False)
    normed = any("running_mean" in key for key in tensors())
    assert normed == (name == "batchnorm_high_lr")
    structure = json.loads(Path("r/model.json").read_text())["structure"]["scratch"]
    activation = "relu" if normed else "selu"
    assert structure["activation"] == activation
    depth = {"default_dnn": 5, "self_normalizing": 20, "batchnorm_high_lr": 6}[name]
    assert sum(key.endswith("linear.weight") for key in tensors()) == depth


def test_sparse_has_smaller_weights_than_without_its_penalty(
    trained: Callable[..., dict[str, Any]], cli: Cli, pictures: Path
) -> None:
    trained("sparse", "--stages", "head:12@1e-2")
    penalised = tensors()["head.1.weight"].abs()
    again = ("--recipe", "r", "--head-l1", 0, "--out", "without")
    assert cli("finetune", pictures, *again).code == 0
    free = load_file("without/model.safetensors")["head.1.weight"].abs()
    assert (penalised < 1e-3).sum() > 2 * (free < 1e-3).sum()
    assert penalised.mean() < free.mean()


def test_low_latency_is_smaller(trained: Callable[..., dict[str, Any]]) -> None:
    trained("low_latency")
    blocks = {key.split(".")[2] for key in tensors() if key.startswith("backbone.blocks.")}
    assert blocks == {"0", "1", "2"}  # of five
    assert json.loads(Path("r/model.json").read_text())["head"]["activation"] == "leaky_relu"


def test_risk_sensitive_samples_and_abstains_by_itself(
    trained: Callable[..., dict[str, Any]], cli: Cli, pictures: Path
) -> None:
    trained("risk_sensitive", "--stages", "head:8@3e-2")
    careful = ("--set", "predict.mc_dropout=4", "--target-accuracy", 0.3)
    result = cli("predict", "r", pictures / "val" / "disc", *careful, "--json")
    assert result.code == 0, result.err
    assert any(row["mutual_information"] > 0 for row in result.json["predictions"])
    assert all("abstain" in row for row in result.json["predictions"])


def test_imbalanced_draws_and_judges_by_class(trained: Callable[..., dict[str, Any]]) -> None:
    trained("imbalanced")
    assert kept()["data"]["balance"] == "sampler"
    assert kept()["training"]["metric"] == "balanced_accuracy"


def test_high_accuracy_predicts_by_views(
    trained: Callable[..., dict[str, Any]], cli: Cli, pictures: Path
) -> None:
    trained("high_accuracy", "--drop-path", 0)  # the tiny network has no shortcuts
    result = cli("predict", "r", pictures / "val" / "disc", "--set", "predict.tta=2", "--json")
    assert result.code == 0, result.err
    assert all("mutual_information" in row for row in result.json["predictions"])


def test_few_labels_pretrains_first_in_the_same_run(
    unlabeled: Path, trained: Callable[..., dict[str, Any]]
) -> None:
    tiny = ("--unlabeled", unlabeled, "--set", "pretraining.batch_size=8", "--image-size", 32)
    short = ("--stages", "simclr:1, solve, head:1, 1:1, solve")
    summary = trained("few_labels", *tiny, *short)
    assert [stage["name"] for stage in summary["stages"]][:3] == ["solve", "head", "top 1"]
    assert (summary["pretraining"]["method"], summary["pretraining"]["epochs"]) == ("simclr", 1)
    learned = load_file("r/pretraining/model.safetensors")
    frozen = [key for key in learned if key.startswith("blocks.0.")]
    assert frozen
    assert all(torch.equal(learned[key], tensors()[f"backbone.{key}"]) for key in frozen)
