"""Thousands of bad inputs: a sample of them always, all of them in the slow lane."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attack import attack, command
from bad_pictures import KINDS, bad_picture
from bad_texts import bad_manifest, bad_recipe, spoil_run

from transferkit.data.decode import decode, probe
from transferkit.data.manifest import read_manifest
from transferkit.events import Event
from transferkit.files.foreign_files import understood
from transferkit.inference.predict import load_run
from transferkit.recipes.reading import config_of, find_recipe, load_config, read_recipe
from transferkit.runs.folder import open_run
from transferkit.verbs.report import write_report

Tally = Callable[..., None]


def try_pictures(count: int, seed: int, folder: Path) -> list[str]:
    """Read bad pictures as `inspect`, `finetune` and `predict` do; return what went wrong."""
    wrong = []
    for number in range(seed, seed + count):
        name, data = bad_picture(random.Random(number))
        path = folder / name
        path.write_bytes(data)
        for call in (
            lambda path=path: probe(path),
            lambda path=path: decode(path, at_least_px=rand_px(path)),
        ):
            if problem := attack(call):
                wrong.append(f"picture {number}: {problem}")
                break
        path.unlink()
    return wrong


def rand_px(path: Path) -> int | None:
    return None if path.stat().st_size % 2 else 32


def try_manifests(count: int, seed: int, folder: Path) -> list[str]:
    wrong = []
    for number in range(seed, seed + count):
        path = folder / "table.csv"
        path.write_bytes(bad_manifest(random.Random(number)))
        if problem := attack(lambda path=path: read_manifest(path)):
            wrong.append(f"manifest {number}: {problem}")
    return wrong


def try_recipes(count: int, seed: int, folder: Path) -> list[str]:
    wrong = []
    for number in range(seed, seed + count):
        path = folder / "recipe.toml"
        path.write_bytes(bad_recipe(random.Random(number)))
        if problem := attack(lambda path=path: load_config(read_recipe(find_recipe(str(path))))):
            wrong.append(f"recipe {number}: {problem}")
    return wrong


def use_run(path: Path) -> None:
    """Read everything that the commands read of a run."""
    folder = open_run(path)
    if "recipe" in folder.files:
        config_of(folder)
    for kind in ("last", "best"):
        folder.load_checkpoint(kind)
    folder.load_reference()
    folder.load_validation()
    load_run(folder)


def report_run(path: Path) -> None:
    folder = open_run(path)
    with understood(path):
        write_report(folder, ignore)


def ignore(event: Event) -> None:
    """Take events and do nothing."""


def try_runs(count: int, seed: int, folder: Path, run: Path) -> list[str]:
    wrong = []
    for number in range(seed, seed + count):
        path = folder / "run"
        shutil.copytree(run, path)
        spoilt = spoil_run(random.Random(number), path)
        for call in (lambda path=path: use_run(path), lambda path=path: report_run(path)):
            if problem := attack(call):
                wrong.append(f"run {number}, {spoilt}: {problem}")
        shutil.rmtree(path)
    return wrong


@pytest.fixture
def table_folder(tmp_path: Path, pictures: Path) -> Path:
    """What the rows of bad manifests name: pictures, a pipe, a loop."""
    for name in ("a.png", "b.png"):
        shutil.copy(pictures / "val" / "disc" / "0.png", tmp_path / name)
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    return tmp_path


def test_a_sample_of_bad_pictures(tmp_path: Path, tally: Tally) -> None:
    wrong = try_pictures(120, 0, tmp_path)
    tally("bad pictures", tried=120, held=120 - len(wrong))
    assert wrong == []


def test_every_kind_of_bad_picture_is_made() -> None:
    for kind in KINDS:
        assert isinstance(kind(random.Random(1)), bytes)


def test_a_sample_of_bad_texts(table_folder: Path, tally: Tally) -> None:
    wrong = try_manifests(40, 0, table_folder) + try_recipes(40, 0, table_folder)
    tally("bad manifests and recipes", tried=80, held=80 - len(wrong))
    assert wrong == []


def test_a_sample_of_bad_runs(tmp_path: Path, tiny_run: Path, tally: Tally) -> None:
    wrong = try_runs(10, 0, tmp_path, tiny_run)
    tally("bad run folders", tried=10, held=10 - len(wrong))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_thousands_of_bad_pictures(part: int, tmp_path: Path, tally: Tally) -> None:
    wrong = try_pictures(1250, 1_000_000 + part * 10_000, tmp_path)
    tally("bad pictures", tried=1250, held=1250 - len(wrong))
    assert wrong == []


@pytest.mark.slow
def test_thousands_of_bad_manifests(table_folder: Path, tally: Tally) -> None:
    wrong = try_manifests(2000, 1_000_000, table_folder)
    tally("bad manifests", tried=2000, held=2000 - len(wrong))
    assert wrong == []


@pytest.mark.slow
def test_thousands_of_bad_recipes(table_folder: Path, tally: Tally) -> None:
    wrong = try_recipes(2000, 1_000_000, table_folder)
    tally("bad recipes", tried=2000, held=2000 - len(wrong))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_thousand_bad_runs(part: int, tmp_path: Path, tiny_run: Path, tally: Tally) -> None:
    wrong = try_runs(500, 1_000_000 + part * 1000, tmp_path, tiny_run)
    tally("bad run folders", tried=500, held=500 - len(wrong))
    assert wrong == []


def test_a_folder_of_bad_pictures_through_the_commands(
    tmp_path: Path, tiny_run: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `inspect` writes there
    for number in range(30):
        name, data = bad_picture(random.Random(number))
        folder = tmp_path / "data" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}{name}").write_bytes(data)
    os.mkfifo(tmp_path / "data" / "class0" / "pipe.png")
    (tmp_path / "data" / "class1" / "up").symlink_to("..")
    (tmp_path / "data" / "class1" / "zero.png").symlink_to("/dev/zero")
    calls = (
        command("inspect", tmp_path / "data", "--json"),
        command("predict", tiny_run, tmp_path / "data", "-o", tmp_path / "rows.csv"),
        command("predict", tiny_run, tmp_path / "data", "-o", tmp_path / "rows.jsonl"),
    )
    wrong = [problem for call in calls if (problem := attack(call))]
    tally("commands on a folder of bad pictures", tried=3, held=3 - len(wrong))
    assert wrong == []


def test_the_attack_notices_what_it_looks_for() -> None:
    def hang() -> None:
        while True:
            pass

    import attack as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_S", 1)
        assert attack(hang) == "longer than 1 s"
        assert "KeyError" in attack(lambda: {}["a"])
        assert attack(lambda: None) == ""
        if os.access("/proc/self/clear_refs", os.W_OK):
            patch.setattr(module, "MOST_MB", 50)
            # much more than the limit: collecting garbage meanwhile may give back some tens of MB
            assert "more memory" in attack(lambda: bytearray(400_000_000).count(b"a"))
