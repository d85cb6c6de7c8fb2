"""`choose` from the command line: its table, its JSON, its plot, and the run that follows."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.backbones.create import create_backbone

Cli = Callable[..., Any]
NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 80 pictures of 64 × 64 pixels, dark and light."""
    root, generator = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        for number in range(40):
            pixels = generator.integers(60 + 80 * label, 120 + 80 * label, (64, 64, 3), np.uint8)
            file = root / ("train" if number < 32 else "val") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(create_backbone(NAME, pretrained=False).model.state_dict(), path)
    return path


def test_what_is_chosen_can_be_trained_as_the_table_says(
    shades: Path, weights: Path, cli: Cli
) -> None:
    own = ("--weights", weights, "--backbone", NAME)
    command = ("choose", shades, *own, "--backbones", "tf_efficientnet_lite0")
    told = cli(*command, "--output", "choice.png")
    assert told.code == 0, told.err
    assert "leave-one-out" in told.out
    found = cli(*command, "--output", "again.png", "--json").json
    rows = found["rows"]
    assert {row["backbone"] for row in rows} == {NAME, "tf_efficientnet_lite0"}
    assert rows[found["best"]]["accuracy"] == max(row["accuracy"] for row in rows)
    assert found["smallest"] in range(len(rows))
    assert found["output"] == "again.png"
    with Image.open("choice.png") as plot:
        assert plot.size[0] >= 600
    row = rows[found["smallest"]]
    for part in (row["backbone"], str(row["image_size"]), f"--crop {row['crop']}"):
        assert part in told.out
    given = own if row["backbone"] == NAME else ("--backbone", row["backbone"])
    size = ("--image-size", row["image_size"], "--crop", row["crop"])
    run = cli("finetune", shades, *given, *size, "--stages", "solve", "--out", "run", "--json")
    assert run.code == 0, run.err
    assert run.json["leave_one_out"]["accuracy"] == pytest.approx(row["accuracy"], abs=0.1)


def test_a_plot_that_is_no_png_and_a_single_class_are_refused(
    shades: Path, weights: Path, cli: Cli
) -> None:
    own = ("--weights", weights, "--backbone", NAME)
    assert cli("choose", shades, *own, "--output", "choice.pdf").code == 2
    for split in ("train", "val"):
        shutil.copytree(shades / split / "dark", Path("one", split, "dark"))
    result = cli("choose", "one", *own)
    assert result.code == 1
    assert "class" in result.message[0]
