import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_a_run_ends_with_its_report(run: Path, cli: Cli) -> None:
    first = (run / "report.html").read_bytes()
    assert b"accuracy on 12 validation pictures of 3 classes" in first
    assert first.count(b"data:image/jpeg;base64") >= 12  # the least sure, with their pictures
    assert b">stripes<" in first
    result = cli("report", run)
    assert result.code == 0, result.err
    assert result.out == f"report: {run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == first
    assert cli("report", run, "--json").json == {"report": str(run / "report.html")}


def test_pictures_that_are_gone_are_told(run: Path, pictures: Path, cli: Cli) -> None:
    copy = Path("copy").absolute()
    shutil.copytree(run, copy)
    recipe = copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(pictures), "/nowhere"))
    result = cli("report", copy)
    assert result.code == 0
    assert "the report goes without them" in result.out
    assert "data:image/jpeg" not in (copy / "report.html").read_text()


@pytest.mark.parametrize("missing", ["summary.json", "model.safetensors"])
def test_an_unfinished_run_has_none(run: Path, cli: Cli, missing: str) -> None:
    shutil.copytree(run, "copy")
    (Path("copy") / missing).unlink()
    result = cli("report", "copy")
    assert result.code == 1
    assert result.message[0] == "error: copy is not finished: there is nothing to report yet"
    assert "finetune --resume copy" in result.message[1]


def test_a_damaged_recipe_costs_only_what_it_tells(run: Path, cli: Cli) -> None:
    shutil.copytree(run, "copy")
    (Path("copy") / "recipe.toml").write_text("not = [toml")
    assert cli("report", "copy").code == 0
    assert "not = [toml" in (Path("copy") / "report.html").read_text()
