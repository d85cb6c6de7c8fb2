"""Attacks on folders that several processes, or several people, write into."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit.runs.lock import only_process
from transferkit.verbs import finetune, pretrain

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")
FINETUNE = ("finetune", "{}", *TINY, "--stages", "1:1@1e-2", "--views", "1")
PRETRAIN = ("pretrain", "{}", "--method", "byol", "--backbone", "cnn", "--backbone-width", "4")
PRETRAIN = (*PRETRAIN, "--image-size", "32", "--epochs", "1")


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", ["prepare", "train"])
@pytest.mark.parametrize(("verb", "command"), [(finetune, FINETUNE), (pretrain, PRETRAIN)])
def test_the_same_command_twice_leaves_the_first_alone(
    pictures: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, verb: Any, command: Any, step: str
) -> None:
    job = (*(str(pictures) if part == "{}" else part for part in command), "--out", "r")
    usual, told = getattr(verb, step), []

    def twice(*arguments: Any) -> Any:
        if not told:
            before = files_below(Path("r"))
            told.append("")
            told[0] = cli(*job)
            assert files_below(Path("r")) == before
        return usual(*arguments)

    monkeypatch.setattr(verb, step, twice)
    assert cli(*job).code == 0
    assert told[0].code == 1
    assert told[0].message[0] == "error: another process is working on r"
    assert Path("r/recipe.toml").is_file()
    assert Path("r/data.json").is_file()
    assert Path("r/model.safetensors").is_file()


def test_a_report_writes_through_no_link_or_pipe(run: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(run, "r")
    outside = tmp_path / "outside"
    outside.write_text("dear diary")
    Path("r/report.html").unlink()
    Path("r/.report.html.tmp").symlink_to(outside)
    assert cli("report", "r").code == 0
    Path("r/report.html").unlink()
    os.mkfifo("r/.report.html.tmp")
    assert cli("report", "r").code == 0
    assert Path("r/report.html").stat().st_size > 1000
    assert outside.read_text() == "dear diary"


def test_exports_go_into_no_linked_folder(run: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(run, "r")
    (tmp_path / "outside").mkdir()
    Path("r/exports").symlink_to(tmp_path / "outside")
    refused = cli("export", "r")
    assert refused.code == 1
    assert "r/exports is a link" in refused.message[0]
    assert os.listdir(tmp_path / "outside") == []


def test_overlays_go_into_no_linked_folder(
    run: Path, pictures: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    Path("maps").mkdir()
    Path("maps/disc").symlink_to(tmp_path / "outside")
    refused = cli("predict", run, pictures / "val", "--saliency", "maps")
    assert refused.code == 1
    assert "maps/disc is a link" in refused.message[0]
    assert os.listdir(tmp_path / "outside") == []


def test_rows_of_another_model_or_other_options_are_not_mixed(
    run: Path, other: Path, pictures: Path, cli: Cli
) -> None:
    job = (pictures / "val", "-o", "rows.csv")
    assert cli("predict", run, pictures / "val" / "disc", "-o", "rows.csv").code == 0
    before = Path("rows.csv").read_bytes()
    for wrong in ((other, *job), (run, *job, "--no-temperature"), (run, *job, "--ood", "knn")):
        refused = cli("predict", *wrong, "--skip-existing")
        assert refused.code == 1
        assert "another model or other options made it" in refused.message[0]
        assert Path("rows.csv").read_bytes() == before
    assert cli("predict", run, *job, "--batch-size", "2", "--skip-existing").code == 0
    assert cli("predict", other, *job).code == 0  # the remedy
    assert "0 rows written" in cli("predict", other, *job, "--skip-existing").out


def test_pictures_are_tried_again_and_known_by_any_name(
    run: Path, pictures: Path, cli: Cli
) -> None:
    shutil.copytree(pictures / "val", "val")
    good = Path("val/disc/0.png").read_bytes()
    Path("val/disc/0.png").write_bytes(b"away")
    job = ("-o", "rows.csv", "--skip-existing")
    assert cli("predict", run, "val", *job).code == 0
    Path("val/disc/0.png").write_bytes(good)
    assert "1 rows written" in cli("predict", run, "val", *job).out
    assert "0 rows written" in cli("predict", run, Path("val").resolve(), *job).out
    with Path("rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == len(list(Path("val").rglob("*.png")))
    assert not any(row["error"] for row in rows)


@pytest.mark.parametrize(
    ("output", "command"),
    [
        ("rows.csv", ("predict", "RUN", "VAL", "-o")),
        ("f.safetensors", ("predict", "RUN", "VAL", "--save-features")),
        ("e.csv", ("embed", "RUN", "VAL", "-o")),
        ("x.onnx", ("export", "RUN", "-o")),
    ],
)
def test_two_jobs_do_not_share_an_output(
    run: Path, pictures: Path, cli: Cli, output: str, command: tuple[str, ...]
) -> None:
    named = {"RUN": run, "VAL": pictures / "val"}
    job = [named.get(part, part) for part in command]
    with only_process(Path(output)):
        refused = cli(*job, output)
        assert {path.name for path in Path().iterdir()} == {f".{output}.lock"}
    assert refused.code == 1
    assert refused.message[0] == f"error: another process is working on {output}"
    assert cli(*job, output).code == 0
    assert not Path(f".{output}.lock").exists()
