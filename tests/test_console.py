import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transferkit.cli.tables.training import closing_table, plan_table
from transferkit.console import (
    LiveView,
    print_error,
    print_json,
    print_lines,
    print_table,
)
from transferkit.errors import UserError
from transferkit.evaluation.metrics import WeakClass
from transferkit.events import EpochEnded, Notice, Progress, StageEnded, StageStarted, Working
from transferkit.finetuning.summary import PlanRow, RunSummary, StageSummary

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
METRICS = {
    "train_loss": 0.5,
    "val_loss": 0.25,
    "train_accuracy": 0.9,
    "val_accuracy": 0.875,
    "seconds": 1.26,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_terminal(monkeypatch):
    """Make standard output a terminal; not a fixture, because capturing resets it between those."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self):
        return self.now


def show_all(view):
    view.show(Notice("3 pictures are unreadable", warning=True))
    view.show(Notice("cache reused"))
    view.show(StageStarted(1, "last block group", 12, 3e-4, 1_100_248, 4_652_008, cached=True))
    view.show(EpochEnded(1, "last block group", 1, METRICS, is_best=True))
    view.show(EpochEnded(1, "last block group", 12, {**METRICS, "val_loss": math.nan}))
    view.show(StageEnded(1, "last block group", 12, 0.875, 61.0, "stopped early"))
    view.show(StageEnded(2, "all", 0, 0.875, 0.0, "skipped: no gain"))


EXPECTED = """\
warning: 3 pictures are unreadable
cache reused

stage 2/4 · last block group · 1.1 M of 4.7 M parameters train · lr 3e-4 · cached
  epoch  train loss    val loss   train acc     val acc     seconds
      1      0.5000      0.2500       90.0%       87.5%         1.3  ★
     12      0.5000         nan       90.0%       87.5%         1.3
  stopped early after 12 epochs, 1 min 01 s, best 87.5%
stage 3/4 · all · skipped: no gain
"""


def test_plain_lines(capsys):
    with LiveView(num_stages=4) as view:
        show_all(view)
    assert capsys.readouterr().out == EXPECTED


def test_json_mode_leaves_standard_output_alone(capsys):
    with LiveView(as_json=True, num_stages=4) as view:
        show_all(view)
        view.show(Progress("pictures", 1, 2))
    out, err = capsys.readouterr()
    assert (out, err) == ("", EXPECTED)


def test_plain_progress_is_rare(capsys):
    clock = Clock()
    with LiveView(clock=clock) as view:
        for second in range(26):
            clock.now = float(second)
            view.show(Progress("pictures", 100 * second, 5000))
    assert capsys.readouterr().out == "pictures: 1,000 of 5,000\npictures: 2,000 of 5,000\n"


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_no_control_codes_in_a_pipe(capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with LiveView() as view:
        view.show(Notice("x", warning=True))
        view.show(Progress("pictures", 1, 2))
    print_table("t", ["a"], [[1]])
    print_error(UserError("what"))
    assert "\x1b" not in "".join(capsys.readouterr())


def test_bars_on_a_terminal(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with LiveView(num_stages=4) as view:
        view.show(Progress("pictures", 1, 50))
        view._bars.refresh()
        assert "pictures" in terminal.getvalue()
        assert "1/50" in terminal.getvalue()
        view.show(Progress("pictures", 50, 50))
        assert view._bars.tasks == []  # done: the bar goes
        view.show(Progress("epoch 1", 3, 50))
        assert [task.completed for task in view._bars.tasks] == [3]
        show_all(view)
        assert view._bars.tasks == []  # the epoch ended before its total
    shown = terminal.getvalue()
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again
    assert "\x1b[33mwarning: \x1b[0m3 pictures" in shown
    plain = ESCAPE.sub("", shown)
    for line in EXPECTED.splitlines():
        assert line in plain


def test_what_begins_is_told_at_once_on_a_terminal(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with LiveView() as view:
        view.show(Working("loading libraries"))
        assert "  loading libraries " in terminal.getvalue()  # drawn already, in this thread
        view.show(Notice("a line", warning=True))
        assert [task.description for task in view._bars.tasks] == ["loading libraries"]
        view.show(Working("reading pictures"))
        assert [task.description for task in view._bars.tasks] == ["reading pictures"]
        view.show(Progress("pictures", 1, 50))
        assert [task.description for task in view._bars.tasks] == ["pictures"]
        view.show(Working("building \x1b[2Jx"))
        assert [task.description for task in view._bars.tasks] == ["building \\x1b[2Jx"]
        view.clear()
        assert view._bars.tasks == []
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("muted", [False, True])
def test_beside_plain_lines_what_begins_goes_to_a_terminal_at_standard_error(
    capsys, monkeypatch, as_json, muted
):
    make_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with LiveView(as_json=as_json, muted=muted) as view:
        view.show(Working("reading pictures"))
        view.show(Working("building it"))
    told = "" if muted else "reading pictures ...\nbuilding it ...\n"
    assert (out.getvalue(), err.getvalue()) == ("", told)


@pytest.mark.parametrize("closed", [False, True])
def test_no_terminal_is_told_nothing_of_what_begins(capsys, monkeypatch, closed):
    if closed:
        monkeypatch.setattr(sys, "stderr", None)
    with LiveView() as view:
        view.show(Working("reading pictures"))
    assert capsys.readouterr() == ("", "")


def interrupted_run():
    with LiveView() as view:
        view.show(Progress("pictures", 1, 50))
        raise KeyboardInterrupt


def test_terminal_is_given_back_after_an_interrupt(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")


def test_no_color(monkeypatch):
    terminal = make_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with LiveView() as view:
        show_all(view)
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", terminal.getvalue())
    assert "warning: 3 pictures" in ESCAPE.sub("", terminal.getvalue())


def test_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = make_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with LiveView(num_stages=4) as view:
        show_all(view)
        view.show(Progress("pictures", 1, 2))
    assert terminal.getvalue() == EXPECTED


def test_best_loss_and_unknown_best(capsys):
    with LiveView() as view:
        view.show(StageEnded(0, "head", 1, -0.7, 2.0, "finished"))
        view.show(StageEnded(0, "head", 0, -math.inf, 2.0, "finished"))
    assert capsys.readouterr().out.splitlines() == [
        "  finished after 1 epoch, 2.0 s, best loss 0.7000",
        "  finished after 0 epochs, 2.0 s",
    ]


def test_error_as_people_see_it(capsys):
    error = UserError(
        "data/birds/heron has no readable image",
        "37 files found: 36 are HEIC (not supported)",
        "convert them to JPEG or PNG, or leave the class out with --exclude heron",
    )
    print_error(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: data/birds/heron has no readable image\n"
        "       37 files found: 36 are HEIC (not supported)\n"
        "       convert them to JPEG or PNG, or leave the class out with --exclude heron\n"
    )
    print_error(error, as_json=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "error": {
            "what": error.what,
            "where": error.where,
            "remedy": error.remedy,
            "exit_code": 1,
        }
    }


def test_text_is_shown_as_it_is(capsys):
    wild = "[red]a[/red] :smile: 1,000 \x1b[2J\x07 " + "long " * 60
    print_lines([wild])
    print_table("[bold]", ["[b]"], [["[/i] \x1b]0;x\x07"]])
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == wild.replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    assert "[/i] \\x1b]0;x\\x07" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_every_encoding_can_be_written(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with LiveView() as view:
        show_all(view)
    print_lines(["name\udcff 鷺"])
    print_table("t", ["a"], [["鷺\udcff"]])
    print_json({"name": "鷺\udcff"})
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding).splitlines()[-1]) == {"name": "鷺\udcff"}


def test_json_is_strict(capsys):
    print_json({"loss": math.nan, "path": Path("a"), "n": np.int64(3), "x": np.float32(0.5)})
    assert capsys.readouterr().out == '{"loss": null, "path": "a", "n": 3, "x": 0.5}\n'


def test_table(capsys):
    rows = [["a", 4.71234, "embedded"], ["bb", 12, None]]
    print_table("Models", ["name", "millions", "offline"], rows)
    assert capsys.readouterr().out == (
        "\nModels\n"
        "name  millions  offline\n"
        "────────────────────────\n"
        "a        4.712  embedded\n"
        "bb          12\n"
    )
    print_table("Empty", ["name"], [])
    assert "name" in capsys.readouterr().out


def test_plan_table(capsys):
    plan_table(
        [
            PlanRow(
                "head", 30, {"stem": 0, "top": 0, "head": 3e-3}, 10_248, 4_652_008, 5_400_000, 31
            ),
            PlanRow(
                "all", 4, {"stem": 2.5e-4, "top": 5e-4, "head": 1e-3}, 4_652_008, 4_652_008, 0, 65
            ),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line) for line in lines[2:] if line] == [
        ["learning rate of", "1 head", "2 all"],
        [lines[3]],
        ["head", "3e-3", "1e-3"],
        ["top", "frozen", "5e-4"],
        ["stem", "frozen", "2.5e-4"],
        ["epochs (maximum)", "30", "4"],
        ["parameters trained", "10.2 k", "4.7 M"],
        ["cache", "5.4 MB", "live"],
        ["expected time", "31 s", "1 min 05 s"],
        ["expected total: 1 min 36 s; stages end earlier when validation stops improving"],
    ]


SUMMARY = RunSummary(
    run=Path("runs/flowers"),
    backbone="tf_efficientnet_lite0",
    metrics={"accuracy": 0.941, "balanced_accuracy": 0.938, "log_loss": 0.2123},
    head_only_accuracy=0.91,
    stages=(
        StageSummary(
            *("head", 12, 31.2, 0.42, 2400, True, 0.91, "stopped early"),
            parts={"trunk": 25, "training": 6.2, "checkpoint": 0.01},
        ),
        StageSummary("all", 0, 0, 0, 0, False, math.nan, "skipped: the stage before did not help"),
    ),
    classes=17,
    train_pictures=1020,
    val_pictures=340,
    seconds=143,
    parts={"scan": 102.1, "trunk": 25, "training": 6.2, "checkpoint": 0.01, "plots": 9.7},
    weak_classes=(WeakClass("snow [b]drop", 0.714, 14, "tulip", 3),),
    files={"model": Path("runs/flowers/model.safetensors")},
)


def test_closing_table(capsys):
    closing_table(SUMMARY)
    lines = [line for line in capsys.readouterr().out.splitlines() if line and "──" not in line]
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["accuracy 94.1% on 340 validation pictures of 17 classes (head only 91.0%: +3.1 points)"],
        ["balanced 93.8% · log loss 0.212"],
        ["Weakest classes"],
        ["class", "recall", "pictures", "most confused with"],
        ["snow [b]drop", "71.4%", "14", "tulip (3)"],
        ["Stages"],
        ["stage", "epochs", "s/epoch", "pictures/s", "trunk", "time", "accuracy", "ended"],
        ["head", "12", "0.42", "2,400", "cached", "31 s", "91.0%", "early"],
        ["all", "0", "skipped"],
        ["Where the time went"],
        ["seconds", "head", "outside", "total"],
        ["scan", "102.1", "102.1"],
        ["trunk", "25.0", "25.0"],
        ["training", "6.2", "6.2"],
        ["plots", "9.7", "9.7"],
        ["total", "31.2", "111.8", "143.0"],
        ["2 min 23 s in total"],
        ["run folder", "runs/flowers"],
        ["model", "runs/flowers/model.safetensors"],
        ["next", "transferkit predict runs/flowers PICTURES..."],
    ]


def test_closing_table_fits_a_terminal(monkeypatch):
    terminal = make_terminal(monkeypatch)
    closing_table(SUMMARY)
    tables = ESCAPE.sub("", terminal.getvalue()).split("Stages\n")[1].splitlines()
    assert tables[0].split() == [
        *("stage", "epochs", "s/epoch", "pictures/s", "trunk", "time", "accuracy", "ended")
    ]


def test_summary_is_json(capsys):
    print_json(SUMMARY)
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == "runs/flowers"
    assert found["stages"][1]["best_accuracy"] is None
    assert found["weak_classes"][0]["confused_with"] == "tulip"
    assert found == SUMMARY.to_dict()


def test_import_is_light():
    code = "import sys, transferkit.console; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"rich", "torch", "numpy", "matplotlib", "pydantic", "PIL", "typer"}
    assert not heavy & set(loaded.stdout.split())
