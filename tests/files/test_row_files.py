import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transferkit.config import Predict
from transferkit.errors import UserError
from transferkit.files.csv_rows import from_csv
from transferkit.files.row_files import (
    ArrayFile,
    folder_of,
    not_in,
    open_rows,
    part_path,
    partial_path,
    picture_key,
    require_replaceable,
)
from transferkit.inference.outputs import Outputs
from transferkit.verbs.embed import embed
from transferkit.verbs.predict import check_outputs

NAMES = ["path", "label", "entropy", "error"]
ODD = ['a,"b".png', "new\nline.png", "=formula.png", "é.png", "plain.png"]


def rows(names=ODD):
    return [{"path": n, "label": "x", "entropy": 0.25, "error": ""} for n in names]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_wherever_a_job_is_killed_the_next_one_ends_the_same(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    table = open_rows(whole, NAMES, go_on=False)
    table.write(rows())
    table.close(whole=True)
    expected = whole.read_bytes()
    for cut in range(len(expected) + 1):
        path = tmp_path / f"rows{suffix}"
        path.unlink(missing_ok=True)
        partial_path(path).write_bytes(expected[:cut])
        table = open_rows(path, NAMES, go_on=True)
        table.write([row for row in rows() if picture_key(row["path"]) not in table.done])
        table.close(whole=True)
        assert path.read_bytes() == expected
        assert not partial_path(path).exists()


def test_formulas_are_escaped_and_come_back(tmp_path: Path) -> None:
    table = open_rows(tmp_path / "r.csv", NAMES, go_on=False)
    table.write(rows())
    table.close(whole=True)
    text = (tmp_path / "r.csv").read_text()
    assert "'=formula.png" in text
    assert [row["path"] for row in from_csv(text)] == ODD


def test_a_job_that_fails_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"path": "old"}\n')
    table = open_rows(path, NAMES, go_on=False)
    table.write(rows())
    table.close(whole=False)
    assert path.read_text() == '{"path": "old"}\n'
    assert partial_path(path).exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_other_columns_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    table = open_rows(path, NAMES, go_on=False)
    table.write(rows())
    table.close(whole=True)
    with pytest.raises(UserError, match="its columns are others"):
        open_rows(path, [*NAMES, "more"], go_on=True)


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = open_rows(tmp_path / "r.parquet", NAMES, go_on=False)
    table.write(rows()[:2])
    table.write([{**rows()[2], "entropy": None}])
    table.close(whole=True)
    found = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["path"] for row in found] == ODD[:3]
    assert [row["entropy"] for row in found] == [0.25, 0.25, None]
    with pytest.raises(UserError, match="cannot go on"):
        open_rows(tmp_path / "r.parquet", NAMES, go_on=True)


def test_an_array_is_a_safetensors_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    file = ArrayFile(tmp_path / "a.safetensors", "samples", (3, 2, 4), {"classes": json.dumps([1])})
    for row in (values[0], None, values[2]):
        file.write(row)
    file.close(whole=True)
    found = load_file(tmp_path / "a.safetensors")["samples"]
    assert np.array_equal(found[[0, 2]], values[[0, 2]])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_parts_make_the_file_of_one_job(tmp_path: Path, suffix: str) -> None:
    batches = [rows(ODD[:2]), rows(ODD[2:4]), rows(ODD[4:])]
    whole, put = tmp_path / f"whole{suffix}", tmp_path / f"put{suffix}"
    parts = [part_path(put, number, 3) for number in range(3)]
    assert parts[0].name == f"put.part-1-of-3{suffix}"
    for path, own in ((whole, batches), (parts[0], batches[:2]), (parts[1], batches[2:])):
        table = open_rows(path, NAMES, go_on=False)
        for batch in own:
            table.write(batch)
        table.close(whole=True)
    open_rows(parts[2], NAMES, go_on=False).close(whole=True)  # nothing was left for the third
    table = open_rows(put, NAMES, go_on=False)
    for part in parts:
        table.append(part)
    table.close(whole=True)
    assert put.read_bytes() == whole.read_bytes()


def test_parts_make_the_array_of_one_job(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    whole, put = tmp_path / "whole.safetensors", tmp_path / "put.safetensors"
    parts = [part_path(put, number, 2) for number in range(2)]
    for path, own in ((whole, values), (parts[0], values[:3]), (parts[1], values[3:])):
        file = ArrayFile(path, "samples", own.shape, {"seed": "1"})
        for row in own:
            file.write(row)
        file.close(whole=True)
    file = ArrayFile(put, "samples", values.shape, {"seed": "1"})
    for part in parts:
        file.append(part)
    file.close(whole=True)
    assert put.read_bytes() == whole.read_bytes()


MADE = {"by": {"models": ["m1"], "top_k": 3}, "folder": ""}


def job(path: Path, names: list[str], go_on: bool = True, made=MADE, error: str = "") -> list[str]:
    """Write rows for the pictures that have none yet; return their names."""
    table = open_rows(path, NAMES, go_on, made)
    left = [str(file) for file in not_in(table.done, map(Path, names))]
    table.write([{**row, "error": error} for row in rows(left)])
    table.close(whole=True)
    return left


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("killed", [False, True])
def test_rows_of_another_model_or_other_options_are_not_mixed(
    tmp_path: Path, suffix: str, killed: bool
) -> None:
    path = tmp_path / f"r{suffix}"
    job(path, ["a", "b"])
    if killed:
        open_rows(path, NAMES, go_on=True, made=MADE).close(whole=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for by, told in (
        ({"models": ["m2"], "top_k": 3}, "models: there ['m1'], now ['m2']"),
        ({"models": ["m1"], "top_k": 1}, "top_k: there 3, now 1"),
    ):
        with pytest.raises(UserError, match="another model or other options made it") as caught:
            job(path, ["c"], made={**MADE, "by": by})
        assert caught.value.where == told
        assert "leave --skip-existing out" in caught.value.remedy
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert job(path, ["c", "a"]) == ["c"]
    job(path, ["d"], go_on=False, made={**MADE, "by": {"models": ["m2"]}})  # the remedy works
    assert job(path, ["d", "e"], made={**MADE, "by": {"models": ["m2"]}}) == ["e"]


def test_rows_of_unknown_making_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    job(path, ["a"], made=None)
    for damage in (None, "{", "[1]", '{"by": 3}'):
        if damage:
            (tmp_path / "r.csv.made.json").write_text(damage)
        with pytest.raises(UserError, match="nothing says which model and options made it"):
            job(path, ["b"])
    assert from_csv(path.read_text())[0]["path"] == "a"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_pictures_with_an_error_are_tried_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    job(path, ["a"])
    job(path, ["b\n", "c"], error="the disk was\naway")
    assert job(path, ["a", "b\n", "c"]) == ["b\n", "c"]
    assert job(path, ["a", "b\n", "c"]) == []
    text = path.read_text()
    found = from_csv(text) if suffix == ".csv" else [json.loads(t) for t in text.splitlines()]
    assert [row["path"] for row in found] == ["a", "b\n", "c"]
    assert not any(row.get("error") for row in found)


def test_a_picture_is_known_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    here = {**MADE, "folder": folder_of([Path("real/a.png")])}
    assert here["folder"] == str(tmp_path)
    path = tmp_path / "r.csv"
    assert job(path, ["real/a.png"], made=here) == ["real/a.png"]
    whole = str(tmp_path / "real" / "a.png")
    for name in ("./real/../real/a.png", "link/a.png", whole):
        assert job(path, [name], made=here) == []
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert folder_of([Path(whole)]) == ""
    assert job(path, [whole], made=MADE) == []
    elsewhere = {**MADE, "folder": folder_of([Path("real/a.png")])}
    with pytest.raises(UserError, match="seen from another folder"):  # it is another picture
        job(path, ["real/a.png"], made=elsewhere)


FOREIGN = {
    "accounts.csv": b"name,amount\nx,1\n",
    "manifest.csv": b"path,label\na.png,x\n",
    "torn.csv": b'"path',
    "notes.jsonl": b'{"path": "a.png"}\n',
    "binary.csv": bytes(range(256)),
    "no.parquet": b"PAR1",
    "no.safetensors": b"\xff" * 20,
}


@pytest.mark.parametrize("name", [*FOREIGN, "model.safetensors"])
def test_what_somebody_else_wrote_is_not_overwritten(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "model.safetensors":
        save_file({"weight": np.zeros(3, np.float32)}, path)
    else:
        path.write_bytes(FOREIGN[name])
    before = path.read_bytes()
    is_array = path.suffix == ".safetensors"
    outputs = Outputs(features=path) if is_array else Outputs(rows=path)
    for ask in (
        lambda: check_outputs(outputs, Predict(), 1),
        lambda: embed(tmp_path / "run", [], path, "auto", print),
    ):
        with pytest.raises(UserError, match="transferkit did not write it") as refused:
            ask()
        assert (refused.value.exit_code, path.read_bytes()) == (2, before)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".safetensors"])
def test_what_an_earlier_job_wrote_is_overwritten(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    require_replaceable([None, path])
    path.touch()
    require_replaceable([path])
    if suffix == ".safetensors":
        file = ArrayFile(path, "features", (1, 2), {"paths": "[]"})
        file.write(None)
        file.close(whole=True)
    else:
        if suffix == ".parquet":
            pytest.importorskip("pyarrow")
        table = open_rows(path, NAMES, go_on=False)
        table.write(rows())
        table.close(whole=True)
    assert path.stat().st_size
    require_replaceable([path])
    target = tmp_path / "target"
    target.write_text("of somebody else")
    path.unlink()
    path.symlink_to(target)
    require_replaceable([path])  # the link is replaced, the target stays
