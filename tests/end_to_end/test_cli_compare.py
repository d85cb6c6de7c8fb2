from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transferkit.evaluation.comparison import short_names

Cli = Callable[..., Any]


def test_runs_stand_side_by_side(run: Path, other: Path, pictures: Path, cli: Cli) -> None:
    found = cli("compare", run, other, "-o", "curves.png", "--json").json
    summaries = [cli("evaluate", folder, pictures, "--json") for folder in (run, other)]
    assert all(done.code == 0 for done in summaries)
    assert len(set(found["names"])) == 2
    assert found["options"]["training.batch_size"] == [6, 5]
    assert found["options"]["stages"][1][0]["epochs"] == 2
    assert "training.seed" not in found["options"]
    assert found["figures"]["epochs"] == [5, 2]
    assert found["stages"]["top 3"][1] is None
    known = [done.json["accuracy"] for done in summaries]
    assert found["figures"]["accuracy"] == pytest.approx(known)
    with Image.open("curves.png") as image:
        assert image.width > 1000
    out = cli("compare", run, other).out
    assert "Options that differ" in out
    assert "training.batch_size" in out
    assert "1:2@0.01" in out


def test_what_cannot_be_compared_is_refused(run: Path, other: Path, cli: Cli) -> None:
    assert cli("compare", run).code == 2
    assert cli("compare", run, run).code == 2
    refused = cli("compare", run, other, "-o", "curves.svg")
    assert refused.code == 2
    assert "must end in .png" in refused.message[0]
    assert cli("compare", run, other, "-o", "none/curves.png").code == 1
    Path("unfinished").mkdir()
    Path("unfinished/recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    unfinished = cli("compare", run, "unfinished")
    assert unfinished.code == 1
    assert "is not finished" in unfinished.message[0]


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([Path("/a/x"), Path("/b/y")]) == ("x", "y")
    assert short_names([Path("/a/x"), Path("/b/x")]) == ("a/x", "b/x")
