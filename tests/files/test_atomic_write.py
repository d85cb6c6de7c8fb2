"""Links and pipes that others left where transferkit writes: nothing behind them is touched."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transferkit.errors import UserError
from transferkit.files.atomic_write import make_inside, write_atomically
from transferkit.files.row_files import ArrayFile, open_rows
from transferkit.runs.folder import RunFolder
from transferkit.training.boundary_cache import BoundaryCache, remove_unused
from transferkit.verbs.export import waiting_room
from transferkit.verbs.predict import copy_picture


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of somebody else."""
    file = tmp_path / "outside.txt"
    file.write_text("dear diary")
    return file


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """A folder that transferkit writes into."""
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


def rows_of(path: Path) -> None:
    table = open_rows(path, ["path", "error"], go_on=False)
    table.write([{"path": "a", "error": ""}])
    table.close(whole=True)


def array_of(path: Path) -> None:
    ArrayFile(path, "a", (0, 2), {}).close(whole=True)


def copy_of(path: Path) -> None:
    picture = path.with_name("picture.png")
    picture.write_bytes(b"picture")
    copy_picture(picture, path)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "report.html": (".{}.tmp", lambda p: RunFolder(p.parent).write_page(p.name, "page")),
    "model.safetensors": (".{}.tmp", lambda p: RunFolder(p.parent).save_model({}, {})),
    "calibration.json": (".{}.tmp", lambda p: RunFolder(p.parent).write_json("calibration", {})),
    "plot.png": (".{}.tmp", lambda p: write_atomically(p, lambda file: file.write(b"plot"))),
    "rows.csv": ("{}.partial", rows_of),
    "rows.jsonl": ("{}.partial", rows_of),
    "array.safetensors": ("{}.partial", array_of),
    "0001-picture.png": ("{}", copy_of),
}


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_draft_is_never_written_through_what_lies_there(
    inside: Path, outside: Path, name: str, kind: str
) -> None:
    draft, write = WRITERS[name]
    place = inside / draft.format(name)
    if kind == "pipe":
        os.mkfifo(place)
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)  # so that an open pipe is a failure
    else:
        place.symlink_to(outside if kind == "link" else outside.with_name("new"))
    write(inside / name)
    assert outside.read_text() == "dear diary"
    assert not outside.with_name("new").exists()
    assert (inside / name).is_file()
    assert not (inside / name).is_symlink()
    assert place == inside / name or not os.path.lexists(place)
    if kind == "pipe":
        assert os.read(reader, 10) == b""
        os.close(reader)


def test_parquet_is_not_written_through_a_link(inside: Path, outside: Path) -> None:
    pytest.importorskip("pyarrow")
    (inside / "rows.parquet.partial").symlink_to(outside)
    rows_of(inside / "rows.parquet")
    assert outside.read_text() == "dear diary"


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_log_that_is_no_file_is_refused(inside: Path, outside: Path, kind: str) -> None:
    log = inside / "log.txt"
    if kind == "pipe":
        os.mkfifo(log)
    else:
        log.symlink_to(outside if kind == "link" else outside.with_name("new"))
    with pytest.raises(UserError, match=r"log\.txt is a link, or no regular file") as told:
        RunFolder(inside).log("line")
    assert told.value.remedy == "remove it"
    assert outside.read_text() == "dear diary"
    assert not outside.with_name("new").exists()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("plots", lambda run: run._write("plots/curves.png", lambda file: file.write(b"plot"))),
        ("checkpoints", lambda run: run.save_checkpoint("last", {"epoch": 1})),
        ("profile", lambda run: run.save_trace("head", b"{}")),
        ("exports", lambda run: make_inside(run.path, run.path / "exports")),
    ],
)
def test_linked_subfolders_are_refused(
    inside: Path, tmp_path: Path, name: str, write: Callable[[RunFolder], object]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (inside / name).symlink_to(elsewhere)
    with pytest.raises((UserError, OSError), match=f"{name} is a link"):
        write(RunFolder(inside))
    assert list(elsewhere.iterdir()) == []


def test_a_run_folder_may_itself_be_a_link(inside: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inside)
    RunFolder(tmp_path / "link").save_checkpoint("last", {"epoch": 1})
    assert (inside / "checkpoints" / "last.pt").is_file()


def test_the_draft_of_an_export_is_not_made_behind_a_link(inside: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (inside / ".x.onnx.draft").symlink_to(elsewhere)
    with waiting_room(inside / "x.onnx") as waiting:
        assert not waiting.is_symlink()
    assert os.listdir(elsewhere) == ["kept"]


@pytest.mark.parametrize("name", ["rows.bin", "sums.bin", "lock", "."])
def test_a_cache_of_others_leads_nowhere(
    inside: Path, tmp_path: Path, outside: Path, name: str
) -> None:
    folder = inside / "key"
    if name == ".":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match="is a link, or no regular file"):
        BoundaryCache(folder, 2, (3,), "float32").append(torch.zeros(2, 3))
    assert outside.read_text() == "dear diary"
    if name == "lock":
        assert not remove_unused(folder)


def test_two_processes_that_write_one_file_leave_it_whole(inside: Path) -> None:
    path = inside / "report.html"

    def write(file: object) -> None:
        write_atomically(path, lambda other: other.write(b"the other's"))
        file.write(b"half")  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="another process is writing"):
        write_atomically(path, write)
    assert path.read_bytes() == b"the other's"
    assert os.listdir(inside) == ["report.html"]

    def meanwhile(file: object) -> None:
        (inside / ".report.html.tmp").unlink()
        (inside / ".report.html.tmp").write_text("a draft of the other process")

    with pytest.raises(UserError, match="another process is writing"):
        write_atomically(path, meanwhile)
    assert (inside / ".report.html.tmp").read_text() == "a draft of the other process"
    assert path.read_bytes() == b"the other's"
