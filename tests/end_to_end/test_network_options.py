"""Options of the network through the real command line: each changes a run, and runs reload."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit.training import loop

Cli = Callable[..., Any]
MLP = ("--backbone", "mlp", "--image-size", 16, "--backbone-width", 8, "--backbone-depth", 3)
CNN = ("--backbone", "cnn", "--image-size", 16, "--backbone-width", 4, "--backbone-depth", 3)
SHORT = ("--stages", "all:2@1e-2, 1:2", "--views", 1, "--batch-size", 6)
EXACT = ("--cache-dtype", "float32")  # what a run keeps at its end comes from its caches


def digest(run: str) -> str:
    return hashlib.sha256(Path(run, "model.safetensors").read_bytes()).hexdigest()


def probabilities(result: Any) -> list[float]:
    return [row["probability"] for row in result.json["predictions"]]


BUILT: dict[str, tuple[object, ...]] = {
    "mlp": (*MLP, "--activation", "prelu", "--backbone-batchnorm", "first,after"),
    "selu mlp": (
        *(*MLP, "--activation", "selu", "--backbone-dropout", 0.1),
        *("--backbone-dropout-kind", "alpha", "--head-layers", "8", "--head-activation", "selu"),
        *("--dropout-kind", "alpha"),
    ),
    "cnn": (
        *(*CNN, "--backbone-batchnorm", "before", "--head-layers", "8,6", "--dropout"),
        *("0.1,0.2,0", "--head-batchnorm", "first,before", "--head-activation", "leaky_relu"),
        *("--head-slope", 0.2, "--backbone-dropout", 0.2, "--backbone-dropout-kind", "spatial"),
    ),
}


@pytest.mark.parametrize("options", BUILT.values(), ids=BUILT)
def test_a_network_from_scratch_trains_cached_and_live_and_reloads(
    options: tuple[object, ...], pictures: Path, cli: Cli
) -> None:
    result = cli("finetune", pictures, *options, *SHORT, *EXACT, "--out", "r", "--json")
    assert result.code == 0, result.err
    assert [stage["cached"] for stage in result.json["stages"]] == [False, True]
    again = cli("evaluate", "r", pictures, "--split", "val", "--json")
    for name in ("accuracy", "log_loss"):
        assert again.json[name] == pytest.approx(result.json["metrics"][name], abs=1e-5)
    files = sorted((pictures / "val").glob("*/*.png"))
    rows = Path("r/predictions.csv").read_text().splitlines()[1:]
    shown = probabilities(cli("predict", "r", *files, "--json"))
    assert shown == pytest.approx([float(row.split(",")[3]) for row in rows], abs=1e-5)
    repeated = cli("finetune", "--recipe", "r", "--out", "again")
    assert repeated.code == 0, repeated.err
    assert digest("again") == digest("r")


def test_the_pairing_is_told_and_a_bad_one_warned_of(pictures: Path, cli: Cli) -> None:
    good = cli("plan", pictures, *MLP, "--activation", "selu", "--head-layers", "4")
    assert "mlp: selu layers start with lecun_normal" in good.out
    assert "new layers: relu layers start with he_normal" in good.out
    bad = cli("plan", pictures, *MLP, "--activation", "logistic", "--initializer", "normal:1.0")
    assert "logistic layers start with normal:1.0, but its variance is" in bad.err + bad.out
    assert "glorot_normal goes with logistic" in bad.err + bad.out


def test_an_interrupted_run_with_running_statistics_resumes_to_the_same(
    pictures: Path, cli: Cli
) -> None:
    options = (*CNN, "--backbone-batchnorm", "first,before", "--backbone-dropout", 0.2, *SHORT)
    assert cli("finetune", pictures, *options, "--out", "whole").code == 0
    save, calls = loop.save_last, []

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_last", interrupted)
        assert cli("finetune", pictures, *options, "--out", "cut").code == 130
    result = cli("finetune", "--resume", "cut")
    assert result.code == 0, result.err
    assert digest("cut") == digest("whole")


def test_a_run_says_what_it_was_built_of(pictures: Path, cli: Cli) -> None:
    options = (*MLP, "--activation", "elu", "--head-layers", "5", "--stages", "all:1")
    assert cli("finetune", pictures, *options, "--out", "r").code == 0
    description = json.loads(Path("r/model.json").read_text())
    assert description["backbone"] == "mlp"
    assert description["structure"]["scratch"]["activation"] == "elu"
    assert description["structure"]["scratch"]["depth"] == 3
    assert description["head"]["hidden"] == [5]
    assert description["started_from"] == "random (seed 0)"
