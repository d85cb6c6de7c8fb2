import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from transferkit.recipes.reading import load_config, read_recipe, shipped_recipes

Cli = Callable[..., Any]
RECIPES = shipped_recipes()
HEADINGS = ("WHEN", "COMMAND", "EXPECTED", "SOURCE")


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_loads_and_says_when_to_use_it(name: str) -> None:
    load_config(read_recipe(RECIPES[name]))
    text = RECIPES[name].read_text(encoding="utf-8")
    header = [line[2:].split(" ")[0] for line in text.splitlines() if line.startswith("# ")]
    assert [word for word in header if word in HEADINGS] == list(HEADINGS)
    assert f"--recipe {name}" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_quickstart_writes_out_the_defaults() -> None:
    assert load_config(read_recipe(RECIPES["quickstart"])) == load_config()


PLAN = [("solve", 1), ("head", 2), ("top 1", 1), ("solve", 1)]


def test_quickstart_runs(samples: Path, cli: Cli) -> None:
    short = ("head_epochs=2", "block_epochs=1", "full_epochs=0", "depth=1")
    sets = [part for pair in short for part in ("--set", f"training.{pair}")]
    small = ("--image-size", 64, "--views", 1)
    result = cli("finetune", samples, "--recipe", "quickstart", *sets, *small, "--json")
    assert result.code == 0, result.err
    assert [(s["name"], s["epochs"]) for s in result.json["stages"]] == PLAN


def test_linear_probe_trains_the_head_alone(samples: Path, cli: Cli) -> None:
    arguments = ("--recipe", "linear_probe", "--image-size", 64, "--set", "training.patience=30")
    result = cli("finetune", samples, *arguments, "--stages", "head:30@3e-3", "--json")
    assert result.code == 0, result.err
    (stage,) = result.json["stages"]
    assert (stage["name"], stage["cached"]) == ("head", True)
    assert result.json["metrics"]["accuracy"] > 0.5
    assert tomllib.loads(Path(result.json["run"], "recipe.toml").read_text())["augment"] == {
        **{"level": "none", "flip": True, "mixup": 0.0, "cutmix": 0.0}
    }


def test_dog_breeds_on_made_up_pictures(cli: Cli) -> None:
    """500 x 500 in, 224 seen; new layers; the trunk as it was; top blocks at a lower rate."""
    for number in range(4):
        for split in ("train", "val"):
            folder = Path("dogs", split, f"breed{number}")
            folder.mkdir(parents=True)
            for k in range(2):
                colour = (60 * number, 40 + 20 * k, 90)
                Image.new("RGB", (500, 500), colour).save(folder / f"{k}.jpg")
    short = ("--set", "stages=head:1, 1:1~0.3, 2:1~0.3", "--views", 1)
    result = cli("finetune", "dogs", "--recipe", "dog_breeds", *short, "--out", "r", "--json")
    assert result.code == 0, result.err
    description = json.loads(Path("r/model.json").read_text())
    assert description["preprocessing"]["height_px"] == 224
    assert description["head"]["hidden"] == [256]
    with safe_open("r/model.safetensors", "pt") as tensors:
        shapes = {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys()}  # noqa: SIM118
    heads = sorted(shape for name, shape in shapes.items() if "head." in name and len(shape) == 2)
    assert heads == [(4, 256), (256, 1280)]
    assert not any(1000 in shape for shape in shapes.values())


def test_dog_breeds_keeps_its_lower_layers_frozen() -> None:
    config = load_config(read_recipe(RECIPES["dog_breeds"]))
    assert [stage.unfreeze for stage in config.stages] == ["head", 1, 2]
    rates = [stage.lr for stage in config.stages if stage.lr is not None]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3
    assert all(stage.decay is not None and stage.decay < 1 for stage in config.stages[1:])


TINY = ("--backbone", "test_efficientnet", "--set", "pretraining.budget=1s")
ONE_EPOCH = ("--epochs", 1)  # on the recipe's own backbone


@pytest.mark.parametrize(
    ("name", "method", "short"),
    [
        ("pretrain_selfsupervised", "simclr", TINY),
        ("pretrain_auxiliary", "rotation", TINY),
        ("pretrain_autoencoder", "autoencoder", ONE_EPOCH),
        ("pretrain_gan", "gan", ONE_EPOCH),
        ("pretrain_mae", "mae", ONE_EPOCH),
        ("pretrain_rbm", "rbm", ONE_EPOCH),
    ],
)
def test_recipes_of_pretraining_run(
    name: str, method: str, short: tuple[object, ...], unlabeled: Path, cli: Cli
) -> None:
    options = ("--image-size", 32, "--batch-size", 8, "--out", "r", "--json")
    result = cli("pretrain", unlabeled, "--recipe", name, *short, *options)
    assert result.code == 0, result.err
    assert result.json["method"] == method
