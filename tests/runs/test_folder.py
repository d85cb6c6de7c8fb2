import errno
import json
import math
import os
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from transferkit.errors import UserError
from transferkit.files import atomic_write
from transferkit.runs import creation
from transferkit.runs.creation import create_run, default_run_path
from transferkit.runs.folder import FORMAT_VERSION, RunFolder, open_run


@pytest.fixture
def run(tmp_path):
    made = create_run(tmp_path / "runs" / "first")
    made.write_recipe("[training]\nlr = 1e-3\n")
    return made


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def disk_full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_failed_write_leaves_old_file_and_no_other(run, monkeypatch, failing):
    run.write_metrics([{"epoch": 1}])
    run.save_checkpoint("last", {"epoch": 1})
    before = {name: (run.path / name).read_bytes() for name in names(run.path)}
    monkeypatch.setattr(atomic_write.os, failing, disk_full)
    for write in (
        lambda: run.write_metrics([{"epoch": 2}]),
        lambda: run.save_checkpoint("last", {"epoch": 2}),
        lambda: run.save_model({}, {"w": torch.ones(2)}),
        lambda: run.save_plot("curves", Figure()),
    ):
        with pytest.raises(UserError) as caught:
            write()
        assert str(run.path) in caught.value.what
        assert "No space left" in caught.value.what
        assert "intact" in caught.value.where
    assert {name: (run.path / name).read_bytes() for name in names(run.path)} == before


def test_disk_that_fills_up_while_a_checkpoint_is_written(run, monkeypatch):
    run.save_checkpoint("last", {"epoch": 1})

    class Filling:
        """A file on a disk with 1000 bytes left."""

        def __init__(self, file):
            self.file, self.left = file, 1000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                disk_full()
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    really_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Filling(really_open(self, *a, **k)))
    with pytest.raises(UserError, match="No space left"):
        run.save_checkpoint("last", {"weights": torch.zeros(10_000)})
    monkeypatch.undo()
    assert run.load_checkpoint("last") == {"epoch": 1}
    assert names(run.path) == ["checkpoints/last.pt", "recipe.toml"]


def test_interrupt_leaves_no_temporary_file(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_write.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.write_metrics([{"epoch": 2}])
    assert names(run.path) == ["recipe.toml"]


def test_leftover_of_a_killed_process_is_overwritten(run):
    (run.path / ".metrics.csv.tmp").write_bytes(b"half a r")
    run.write_metrics([{"epoch": 1}])
    assert names(run.path) == ["metrics.csv", "recipe.toml"]


def test_checkpoint_round_trip(run):
    generator = torch.Generator().manual_seed(3)
    state = {
        "model": {"w": torch.randn(3, 4, generator=generator), "n": torch.tensor(7)},
        "generator": generator.get_state(),
        "position": {"stage": 1, "epoch": 4, "name": "head", "best": 0.5, "history": [1, 2.5]},
        "nothing": None,
    }
    assert run.load_checkpoint("last") is None
    run.save_checkpoint("last", state)
    found = run.load_checkpoint("last")
    assert found["position"] == state["position"]
    assert found["nothing"] is None
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert torch.equal(found["generator"], state["generator"])
    assert run.load_checkpoint("best") is None


def test_damaged_checkpoint_and_model_are_named(run):
    run.save_checkpoint("last", {"w": torch.zeros(1000)})
    run.save_model({"classes": ["a"]}, {"w": torch.zeros(1000)})
    for name in ("checkpoints/last.pt", "model.safetensors"):
        data = (run.path / name).read_bytes()
        (run.path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot read .*last\.pt"):
        run.load_checkpoint("last")
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors"):
        run.load_model()


def test_model_round_trip_and_same_bytes(run, tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": torch.arange(6).reshape(2, 3).T}
    assert not run.has_model
    with pytest.raises(UserError, match="no model yet"):
        run.load_model()
    run.save_model({"classes": ["heron", "鷺"], "temperature": 1.5}, tensors)
    assert run.has_model
    description, found = run.load_model()
    assert description == {"classes": ["heron", "鷺"], "temperature": 1.5}
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in tensors.items()}

    again = create_run(tmp_path / "again")
    again.save_model({}, dict(reversed(tensors.items())))
    same = [(r.path / "model.safetensors").read_bytes() for r in (run, again)]
    assert same[0] == same[1]


def test_recipe_round_trip_is_still_toml(run):
    import tomllib

    assert run.read_recipe() == "[training]\nlr = 1e-3\n"
    assert tomllib.loads((run.path / "recipe.toml").read_text()) == {"training": {"lr": 1e-3}}


def test_newer_format_refused(run):
    text = (run.path / "recipe.toml").read_text()
    (run.path / "recipe.toml").write_text(text.replace("format 1", f"format {FORMAT_VERSION + 1}"))
    with pytest.raises(UserError, match="newer release") as caught:
        open_run(run.path)
    assert "upgrade" in caught.value.remedy

    (run.path / "recipe.toml").write_text(text)
    assert open_run(run.path) == run
    run.save_model({}, {"w": torch.zeros(1)})
    description = json.loads((run.path / "model.json").read_text())
    assert description == {"format_version": FORMAT_VERSION}
    (run.path / "model.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="its format is 99"):
        open_run(run.path)


@pytest.mark.parametrize("there", [True, False])
def test_not_a_run_folder(tmp_path, there):
    path = tmp_path if there else tmp_path / "nowhere"
    with pytest.raises(UserError, match="is not a run folder") as caught:
        open_run(path)
    assert caught.value.exit_code == 1
    assert "finetune" in caught.value.remedy


def test_occupied_folder(run, tmp_path):
    with pytest.raises(UserError, match="already holds a run") as caught:
        create_run(run.path)
    assert caught.value.exit_code == 2
    assert f"--resume {run.path}" in caught.value.remedy

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UserError, match="is not empty") as caught:
        create_run(tmp_path / "notes")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="is a file") as caught:
        create_run(tmp_path / "notes" / "a.txt")
    assert caught.value.exit_code == 2
    assert names(tmp_path / "notes") == ["a.txt"]


def test_unwritable_place(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the run folder") as caught:
        create_run(tmp_path / "file" / "run")
    assert caught.value.exit_code == 1
    assert "--out" in caught.value.remedy

    monkeypatch.setattr(atomic_write.os, "replace", disk_full)
    with pytest.raises(UserError, match="No space left"):
        create_run(tmp_path / "full")
    assert names(tmp_path / "full") == []


def test_run_folder_removed_meanwhile(tmp_path):
    with pytest.raises(UserError, match="cannot write to"):
        RunFolder(tmp_path / "gone").write_metrics([{"epoch": 1}])
    with pytest.raises(UserError, match="cannot write to"):
        RunFolder(tmp_path / "gone").log("line")


def test_empty_folder_is_used(tmp_path):
    assert create_run(tmp_path).path == tmp_path
    assert names(tmp_path) == []


def test_what_a_run_left_that_never_began_is_cleared(tmp_path):
    left = RunFolder(tmp_path)
    left.write_json("data", {"fingerprint": "1", "pictures": 3})
    left.write_json("budget", {"costs": []})
    left.log("planned")
    for name in ("write_test", ".recipe.toml.tmp"):
        (tmp_path / name).write_text("half")
    assert create_run(tmp_path).path == tmp_path
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("data.json", '{"rows": 3}'), ("data.json", "{"), ("data.json", "[1]"), ("log.txt", "dear")],
)
def test_a_file_of_somebody_else_is_not_cleared(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is not empty"):
        create_run(tmp_path)
    assert (tmp_path / name).read_text() == text


def test_default_run_path_is_new(tmp_path):
    now = datetime(2026, 11, 23, 14, 2, 11)
    first = default_run_path(tmp_path, "flowers", now)
    assert first == tmp_path / "2026-11-23T14-02-11-flowers"
    first.mkdir()
    second = default_run_path(tmp_path, "flowers", now)
    assert second.name == "2026-11-23T14-02-11-flowers-2"
    second.mkdir()
    assert default_run_path(tmp_path, "flowers", now).name == "2026-11-23T14-02-11-flowers-3"
    assert default_run_path(tmp_path, "../my pics/", now).name == "2026-11-23T14-02-11-my-pics"
    assert default_run_path(tmp_path, "..", now).name == "2026-11-23T14-02-11-data"


def test_metrics_round_trip(run):
    assert run.read_metrics() == []
    rows = [
        {"stage": 0, "stage_name": "007", "epoch": 1, "val_loss": 0.1 + 0.2, "lr/head": 1e-3},
        {
            "stage": 1,
            "stage_name": '=last, "2"',
            "epoch": 2,
            "val_loss": -math.inf,
            "lr/-b": 5e-324,
        },
    ]
    run.write_metrics(rows)
    header, *lines = (run.path / "metrics.csv").read_text().splitlines()
    assert header == "stage,stage_name,epoch,val_loss,lr/head,lr/-b"
    assert lines[0] == "0,007,1,0.30000000000000004,0.001,"
    assert run.read_metrics() == rows
    run.write_metrics([{"val_loss": math.nan}])
    assert math.isnan(run.read_metrics()[0]["val_loss"])


def test_predictions_escape_formulas(run):
    run.write_predictions(
        [{"path": '=HYPERLINK("x").jpg', "label": "@home", "p": -0.5, "text": "-1.5", "ok": True}]
    )
    assert (run.path / "predictions.csv").read_text() == (
        'path,label,p,text,ok\n"\'=HYPERLINK(""x"").jpg",\'@home,-0.5,-1.5,1\n'
    )


def test_json_and_log_and_plot(run):
    assert run.read_json("summary") is None
    run.write_json("summary", {"loss": math.nan, "where": Path("a/b"), "n": torch.tensor([1, 2])})
    assert run.read_json("summary.json") == {"loss": None, "where": "a/b", "n": [1, 2]}
    (run.path / "split.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*split\.json"):
        run.read_json("split")

    run.log("first")
    run.log("second\nline")
    lines = (run.path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["first", "second", "   line"]
    datetime.fromisoformat(lines[0].split(" ")[0])

    path = run.save_plot("curves", Figure((1, 1)))
    assert path == run.plot_path("curves") == run.path / "plots" / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert set(run.files) == {"recipe", "plots", "log"}


def test_a_folder_is_held_from_its_creation_on(tmp_path):
    path = tmp_path / "r"
    with ExitStack() as first:
        made = create_run(path, first)
        made.write_json("data", {"fingerprint": "1"})  # the scan is over, the recipe not written
        before = names(path)
        with pytest.raises(UserError, match="another process is working on"):
            create_run(path)
        assert names(path) == before == ["data.json"]
    assert create_run(path).made == ()  # it ended before it began: the same command begins it again
    assert names(path) == []


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = iter([Path("runs/a"), Path("runs/a"), Path("runs/b")])  # the second sees no folder yet
    monkeypatch.setattr(creation, "default_run_path", lambda *_: next(both))
    with ExitStack() as held:
        found = [creation.begin_run(held, None, "flowers").path for _ in range(2)]
        assert found == [Path("runs/a"), Path("runs/b")]
        with pytest.raises(UserError, match="another process"):
            creation.begin_run(held, Path("runs/a"), "flowers")


def test_a_failure_to_make_a_folder_removes_nothing_that_was_there(run, monkeypatch):
    before = names(run.path)
    monkeypatch.setattr(creation, "_clear", disk_full)
    with pytest.raises(UserError, match="cannot make the run folder"):
        create_run(run.path)
    assert names(run.path) == before == ["recipe.toml"]
