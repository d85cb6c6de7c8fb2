"""`find-lr` and `--lr auto` as a person calls them."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")
PLAN = (*TINY, "--stages", "all:1", "--views", "1", "--batch-size", "6")


def test_find_lr_prints_what_finetune_auto_takes(pictures: Path, cli: Cli) -> None:
    found = cli("find-lr", pictures, *PLAN, "--json").json
    assert Path(found["output"]).read_bytes().startswith(b"\x89PNG")
    assert found["output"] == "learning-rate-pictures0.png"
    assert found["suggestion"] == pytest.approx(found["lowest"] / 10, rel=0.05)
    assert cli("finetune", pictures, *PLAN, "--lr", "auto", "--out", "r").code == 0
    kept = tomllib.loads(Path("r/recipe.toml").read_text())["training"]
    assert kept["unfrozen_lr"] == kept["lr"] == found["suggestion"]
    assert "by a range test" in Path("r/log.txt").read_text()


def test_the_table_marks_the_suggestion(pictures: Path, cli: Cli) -> None:
    tried = ("--from-lr", "1e-5", "--to-lr", "1", "--steps", "60", "-o", "mine.png")
    out = cli("find-lr", pictures, *PLAN, *tried).out
    lines = [line.split() for line in out.splitlines()]
    marked = {line[2]: line[0] for line in lines if len(line) == 3 and line[2] in LABELS}
    assert marked.keys() == LABELS
    suggested = next(line[-1] for line in lines if line[:1] == ["suggested"])
    assert float(marked["lowest"]) / 10 == pytest.approx(float(suggested), rel=0.06)
    assert f"--unfrozen-lr {float(suggested):g}" in out
    assert Path("mine.png").exists()


LABELS = {"suggested", "lowest"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--from-lr", "1", "--to-lr", "0.1"), "--from-lr must be below --to-lr"),
        (("-o", "plot.jpg"), "must end in .png"),
        (("--lr", "1e-3"), "No such option: --lr"),
        (("--steps", "3"), "--steps"),
    ],
)
def test_what_cannot_be_is_refused(
    pictures: Path, cli: Cli, given: tuple[str, ...], said: str
) -> None:
    result = cli("find-lr", pictures, *TINY, *given)
    assert result.code == 2
    assert said in result.message[0]


def test_where_no_rate_trains_nothing_is_suggested(pictures: Path, cli: Cli) -> None:
    result = cli("find-lr", pictures, *PLAN, "--from-lr", "1e-9", "--to-lr", "1e-8")
    assert result.code == 1
    assert "suggests nothing" in result.message[0]
    assert not list(Path().glob("*.png"))


def test_a_wrong_rate_is_refused(pictures: Path, cli: Cli) -> None:
    result = cli("finetune", pictures, *TINY, "--lr", "fast")
    assert result.code == 2
    assert "training.lr must be a valid number or 'auto', not 'fast'" in result.message[0]
    out = cli("plan", pictures, *PLAN, "--lr", "auto").out
    assert "finetune finds the first rate by a range test" in out.replace("\n", " ")
