import csv
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import transferkit

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)
REPOSITORY = Path(__file__).resolve().parents[2]


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "error"}
    )


def test_version_of_the_module_run_as_a_program() -> None:
    done = shell(sys.executable, "-m", "transferkit", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"transferkit {transferkit.__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['transferkit', 'finetune', '--help-all']\n"
        "from transferkit.cli import main\n"
        "try: main()\n"
        "except SystemExit as left: print(left.code, sorted({'torch', 'timm', 'numpy', 'PIL', "
        "'matplotlib', 'onnxruntime', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = shell(sys.executable, "-c", code)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--unfrozen-lr" in done.stdout


def test_no_arguments_show_the_commands(cli: Cli) -> None:
    commands = (
        "finetune",
        "plan",
        "find-lr",
        "predict",
        "evaluate",
        "inspect",
        "models",
        "recipes",
        "explain",
        "compare",
        "report",
        "export",
    )
    out = cli("--help").out
    assert all(f"  {name}" in out for name in commands)


def test_models_lists_what_is_at_hand(cli: Cli) -> None:
    found = cli("models", "tf_efficientnet_lite*", "--json").json["models"]
    by_name = {model["name"]: model for model in found}
    assert by_name["tf_efficientnet_lite0"] | {"parameters": 4.7} == {
        "name": "tf_efficientnet_lite0",
        "parameters": 4.7,
        "input_px": 224,
        "license": "apache-2.0",
        "offline": "embedded",
    }
    assert by_name["tf_efficientnet_lite0"]["parameters"] == pytest.approx(4.65, abs=0.05)
    offline = cli("models", "tf_efficientnet_lite0", "--offline").out
    assert "backbones: 1" in offline


def test_recipes_are_listed_with_what_they_are_for(cli: Cli) -> None:
    found = {r["name"]: r for r in cli("recipes", "--json").json["recipes"]}
    assert {"quickstart", "linear_probe", "dog_breeds"} <= found.keys()
    for recipe in found.values():
        first = Path(recipe["path"]).read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# {recipe['description']}"
        assert 30 < len(recipe["description"]) <= 98
    out = cli("recipes").out
    assert all(name in out for name in found)


def test_inspect_writes_what_it_prints(pictures: Path, cli: Cli) -> None:
    result = cli("inspect", pictures, "--json")
    assert result.code == 0, result.err
    printed = result.json
    written = Path(printed.pop("output"))
    assert written.name == f"inspection-{pictures.name}.json"
    assert json.loads(written.read_text()) == printed
    assert printed["pictures"] == 30
    assert printed["counts"]["stripes"] == {"train": 5, "val": 4, "test": 0}
    out = cli("inspect", pictures, "-o", "mine.json").out
    assert "30 pictures of 3 classes" in out
    assert out.endswith("all findings: mine.json\n")
    assert json.loads(Path("mine.json").read_text()) == printed


def test_plan_tells_what_finetune_then_does(pictures: Path, cli: Cli) -> None:
    options = (*TINY, "--stages", "1:2@4e-3~0.5, 3:1~0.5", "--views", 1, "--unfrozen-lr", "1e-3")
    stages = cli("plan", pictures, *options, "--json").json["stages"]
    assert [stage["name"] for stage in stages] == ["top 1", "top 3"]
    assert [stage["epochs"] for stage in stages] == [2, 1]
    rates = list(stages[0]["lr_by_group"].values())
    assert rates[-2:] == [2e-3, 4e-3]
    assert not any(rates[:-2])
    assert list(stages[1]["lr_by_group"].values())[-4:] == [1.25e-4, 2.5e-4, 5e-4, 1e-3]
    assert list(stages[0]["lr_by_group"])[-1] == "head"
    assert all(stage["seconds"] > 0 for stage in stages)
    assert stages[0]["trainable_parameters"] < stages[1]["trainable_parameters"]
    assert not Path("runs").exists()
    summary = cli("finetune", pictures, *options, "--out", "r", "--json").json
    assert [stage["name"] for stage in summary["stages"]] == ["top 1", "top 3"]
    assert [stage["cached"] for stage in summary["stages"]] == [
        stage["cache_bytes"] > 0 for stage in stages
    ]
    with Path("r/metrics.csv").open(newline="") as file:
        trained = {row["stage"] for row in csv.DictReader(file)}
    assert trained == {"0", "1"}


def test_the_plan_of_a_budget_shows_what_fits(pictures: Path, cli: Cli) -> None:
    found = cli("plan", pictures, *TINY, "--budget", "10m", "--json").json
    assert [stage["name"] for stage in found["stages"]] == ["all"]  # nothing is pretrained
    assert found["stages"][0]["epochs"] > 0
    assert any(note.startswith("10 min 00 s allow all ") for note in found["notices"])
    assert "epochs (maximum)" in cli("plan", pictures, *TINY, "--budget", "10m").out
    refused = cli("plan", pictures, *TINY, "--budget", "10m", "--stages", "1:2")
    assert refused.code == 2
    assert "stages have no effect with training.budget" in refused.err


def test_the_plan_as_a_table(pictures: Path, cli: Cli) -> None:
    out = cli("plan", pictures, *TINY, "--stages", "1:2@4e-3, all:1?").out
    lines = {line.split("  ")[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["head"] == ["4e-3", "1e-3"]
    assert lines["stem"][0] == "frozen"
    assert "if improving" in out
    assert "expected total" in out


def test_the_wheel_holds_every_package_the_pages_and_the_recipes() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "transferkit").rglob("*.py")
    }
    assert set(settings["packages"]) == there | {"transferkit.shipped_recipes"}
    assert settings["package-dir"] == {"transferkit.shipped_recipes": "recipes"}
    assert settings["package-data"] == {
        "transferkit.explain": ["*.toml"],
        "transferkit.reporting": ["templates/*"],
        "transferkit.shipped_recipes": ["*.toml"],
    }


def test_explain_lists_and_prints_its_pages(cli: Cli) -> None:
    listed = cli("explain", "--json").json["topics"]
    out = cli("explain").out
    assert {"stages", "cache", "early-stopping"} <= {row["topic"] for row in listed}
    assert all(row["topic"] in out and row["title"] in out for row in listed)
    page = cli("explain", "patience", "--json").json
    text = cli("explain", "early-stopping").out
    assert page["topic"] == "early-stopping"
    assert page["title"] == text.splitlines()[0]
    assert "training.patience" in text
    assert "Prechelt" in text
    assert cli("explain", "zzz").code == 2
