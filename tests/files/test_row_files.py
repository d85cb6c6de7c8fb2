import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from transferkit.errors import UserError
from transferkit.files.csv_rows import from_csv
from transferkit.files.row_files import ArrayFile, open_rows, part_path, partial_path

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
        table.write([row for row in rows() if row["path"] not in table.done])
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
