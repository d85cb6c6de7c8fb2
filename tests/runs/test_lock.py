import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from transferkit.errors import UserError
from transferkit.runs.lock import only_process


def hold(path: Path, held: Event) -> None:
    with only_process(path):
        held.set()
        signal_never_comes = multiprocessing.Event()
        signal_never_comes.wait(60)


def test_a_second_process_is_turned_away_until_the_first_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(UserError, match="another process is working on") as told,
            only_process(tmp_path),
        ):
            pass
        assert told.value.exit_code == 1
    finally:
        process.kill()  # not even told
        process.join()
    with only_process(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_the_folder_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_process(tmp_path):
        raise ZeroDivisionError
    with only_process(tmp_path):
        pass


def test_a_file_is_held_beside_it_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    (tmp_path / ".rows.csv.lock").touch()  # of a job that was killed
    with only_process(path):
        assert os.listdir(tmp_path) == [".rows.csv.lock"]
        with pytest.raises(UserError, match="another process is working on"), only_process(path):
            pass
        assert os.listdir(tmp_path) == [".rows.csv.lock"]
        with only_process(tmp_path / "other.csv"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_lock_is_not_made_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / ".rows.csv.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="is a link"), only_process(tmp_path / "rows.csv"):
        pass
    assert not (tmp_path / "outside").exists()
