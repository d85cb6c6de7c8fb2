import ast
import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from transferkit.evaluation.comparison import short_names
from transferkit.files.csv_rows import from_csv

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


def test_a_run_ends_with_its_model_card(run: Path, pictures: Path) -> None:
    card = ModelCard.load(run / "README.md")
    summary = json.loads((run / "summary.json").read_text())
    assert card.data.model_name == "run"
    assert card.data.base_model is None  # random weights
    by_type = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert by_type["accuracy"] == round(summary["metrics"]["accuracy"], 4)
    assert "95 % interval" in card.text
    assert str(pictures.parent) not in card.content
    assert summary["files"]["model card"] == str(run / "README.md")


def test_the_code_of_the_card_runs(run: Path, pictures: Path) -> None:
    (code,) = re.findall("```python\n(.*?)```", (run / "README.md").read_text(), re.S)
    picture = next((pictures / "val" / "disc").iterdir())
    code = code.replace("RUN", str(run)).replace("picture.jpg", str(picture))
    with redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    with (run / "predictions.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    row = rows[str(picture.relative_to(pictures))]
    found = ast.literal_eval(out.getvalue())
    assert found[row["label"]] == pytest.approx(
        float(row["probability"]), abs=1e-3
    )  # half precision


def test_runs_are_reported_side_by_side(run: Path, other: Path, pictures: Path, cli: Cli) -> None:
    assert cli("report", run, other).out == "report: comparison.html\n"
    page = Path("comparison.html").read_text()
    names = short_names([run, other])
    assert all(f">{name}<" in page for name in names)
    assert "<code>training.batch_size</code>" in page
    known = [json.loads((r / "summary.json").read_text()) for r in (run, other)]
    assert all(f"{100 * k['metrics']['accuracy']:.1f}%" in page for k in known)
    tables = [
        {row["path"]: row["label"] for row in from_csv((r / "predictions.csv").read_text())}
        for r in (run, other)
    ]
    differ = sum(tables[0][path] != tables[1][path] for path in tables[0])
    assert f"{differ} of 12 pictures are not predicted alike" in page or not differ
    assert page.count("data:image/jpeg;base64") == differ
    assert cli("report", run, other, "-o", "p.html", "--json").json == {"report": "p.html"}


def test_what_cannot_be_reported_together_is_refused(run: Path, other: Path, cli: Cli) -> None:
    assert "the name must end in .html" in cli("report", run, other, "-o", "p.pdf").message[0]
    assert "two or more different runs" in cli("report", run, run).message[0]
    alone = cli("report", run, "-o", "p.html")
    assert alone.code == 2
    assert "no effect on the report of one run" in alone.message[0]
    assert cli("report", run, other, "-o", "none/p.html").code == 1
    assert not any(Path().iterdir())
