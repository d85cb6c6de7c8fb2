import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Cli = Callable[..., Any]


@pytest.fixture
def mixed() -> Path:
    """A folder with two pictures, of which one name needs natural order, and a broken one."""
    folder = Path("mixed")
    folder.mkdir()
    for name in ("img10.png", "img9.png"):
        Image.new("RGB", (40, 30), (200, 60, 50)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def test_predict_agrees_with_the_runs_own_predictions(run: Path, pictures: Path, cli: Cli) -> None:
    result = cli("predict", run, pictures / "val", "--json")
    assert result.code == 0, result.err
    with (run / "predictions.csv").open(newline="") as file:
        known = {row["path"]: row for row in csv.DictReader(file)}
    found = {str(Path(r["path"]).relative_to(pictures)): r for r in result.json["predictions"]}
    assert found.keys() == known.keys()
    for path, row in found.items():
        assert row["label"] == known[path]["label"]
        # the run took the activations of its cache, which are in half precision
        assert row["probability"] == pytest.approx(float(known[path]["probability"]), abs=1e-3)


def test_files_folders_and_patterns_keep_their_order(run: Path, mixed: Path, cli: Cli) -> None:
    sources = (mixed / "img10.png", mixed, f"{mixed}/*9.png")
    rows = cli("predict", run, *sources, "--json").json["predictions"]
    names = [Path(row["path"]).name for row in rows]
    assert names[0] == "img10.png"
    assert [n for n in names if n != "img10.png"][:2] == ["broken.jpg", "img9.png"]


def test_an_unreadable_picture_has_a_row_with_its_error(run: Path, mixed: Path, cli: Cli) -> None:
    result = cli("predict", run, mixed, "--json")
    assert result.code == 0
    by_name = {Path(row["path"]).name: row for row in result.json["predictions"]}
    assert by_name["broken.jpg"]["label"] == ""
    assert by_name["broken.jpg"]["probability"] is None
    assert by_name["broken.jpg"]["error"]
    assert by_name["img9.png"]["error"] == ""


def test_only_unreadable_pictures_is_a_failure(run: Path, mixed: Path, cli: Cli) -> None:
    result = cli("predict", run, mixed / "broken.jpg")
    assert result.code == 1
    assert result.message[0] == "error: no picture could be read"
    as_json = cli("predict", run, mixed / "broken.jpg", "--json")
    assert as_json.code == 1
    assert len(as_json.json["predictions"]) == 1  # still one object


@pytest.mark.parametrize(("top_k", "columns"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_k_names_as_many_classes(
    run: Path, mixed: Path, cli: Cli, top_k: int, columns: int
) -> None:
    rows = cli("predict", run, mixed / "img9.png", "--top-k", top_k, "--json").json["predictions"]
    (row,) = rows
    values = [value for key, value in row.items() if key.startswith("probability")]
    assert len(values) == columns
    assert values == sorted(values, reverse=True)
    if columns == 3:
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_csv_and_jsonl_hold_the_same_rows(run: Path, mixed: Path, cli: Cli) -> None:
    printed = cli("predict", run, mixed, "--json").json["predictions"]
    told = cli("predict", run, mixed, "-o", "rows.jsonl").out.splitlines()
    assert told[0].endswith("broken.jpg could not be read; see column error")
    assert told[1:] == ["3 rows written to rows.jsonl"]
    assert cli("predict", run, mixed, "-o", "rows.csv").code == 0
    lines = Path("rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == printed
    with Path("rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [row["path"] for row in printed]
    assert [row["label"] for row in rows] == [row["label"] for row in printed]


def test_both_engines_agree(run: Path, pictures: Path, cli: Cli) -> None:
    val = pictures / "val" / "disc"
    a, b = (
        cli("predict", run, val, "--engine", engine, "--json").json["predictions"]
        for engine in ("torch", "onnx")
    )
    for left, right in zip(a, b, strict=True):
        assert left["label"] == right["label"]
        assert left["probability"] == pytest.approx(right["probability"], abs=1e-4)


def test_the_table_for_people(run: Path, mixed: Path, cli: Cli) -> None:
    out = cli("predict", run, mixed).out
    assert "picture" in out
    assert any("img9.png" in line and "%" in line for line in out.splitlines())
