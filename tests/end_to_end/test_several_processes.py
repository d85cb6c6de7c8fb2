"""The same command in two processes: the same numbers, the same files, one voice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from several import Ended, as_by_srun, environment

from transferkit import processes
from transferkit.config import Config, Predict
from transferkit.config.optimization import OptimizerOptions
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.finetuning.preparation import refuse_sharing
from transferkit.inference.outputs import Outputs
from transferkit.runs.folder import RunFolder
from transferkit.verbs import finetune as verb
from transferkit.verbs.predict import check_outputs

Cli = Callable[..., Any]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ROWS = Path("rows.csv")
BACKBONE = ("--backbone", "test_efficientnet", "--image-size", "32")


def by_torchrun(*arguments: object) -> subprocess.Popen[str]:
    """Start a command in two processes below torchrun's own."""
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "transferkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def process_of_rank(rank: int, launcher: int) -> int:
    """Return the number of one of the processes that torchrun started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("there is no such process")


def kill_second(launched: subprocess.Popen[str], checkpoint: Path) -> Ended:
    """Kill the second process once a first epoch is saved; return what the job said."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process_of_rank(1, launched.pid), signal.SIGKILL)
    out, err = launched.communicate(timeout=120)
    return Ended([launched.returncode], [out], [err])


def losses(run: str, *names: str) -> list[float]:
    """Return the columns of a run's metrics, epoch by epoch."""
    return [row[name] for row in RunFolder(Path(run)).read_metrics() for name in names]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_pretraining_is_killed_resumed_and_equals_one_process(unlabeled: Path, cli: Cli) -> None:
    # small plain steps: Adam's, or large ones, blow rounding up, in one process as in two
    steps = ("--optimizer", "sgd", "--lr", "1e-3", "--epochs", "5", "--batch-size", "8")
    options = ("--method", "simclr", "--temperature", "0.5", *BACKBONE, *steps)
    launched = by_torchrun("pretrain", unlabeled, *options, "--out", "two")
    killed = kill_second(launched, Path("two/checkpoints/last.pt"))
    assert killed.codes != [0]
    lines = [line.strip() for line in killed.err[0].splitlines()]
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1, killed.err[0]
    assert told[0].endswith("; every finished epoch is saved")  # interrupted, or: has ended
    assert "continue it with: transferkit pretrain --resume two" in lines
    assert 0 < len(losses("two", "loss")) < 5

    resumed = as_by_srun("pretrain", "--resume", "two")
    assert resumed.codes == [0, 0], resumed.err
    assert "resuming after epoch" in resumed.out[0]
    assert resumed.out[1] == resumed.err[1] == ""  # one voice
    assert cli("pretrain", unlabeled, *options, "--out", "one").code == 0
    expected = losses("one", "loss", "val_loss")
    assert losses("two", "loss", "val_loss") == pytest.approx(expected, abs=1e-5)


def test_commands_of_one_process_are_refused(
    cli: Cli, unlabeled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = cli("report", "r")
    assert refused.code == 2
    assert refused.message == [
        "error: report runs in one process, not in 2",
        "start it without torchrun or srun; together they can finetune, pretrain, predict",
    ]


def test_prediction_goes_on_with_parts_and_writes_the_file_of_one_process(
    run: Path, pictures: Path, cli: Cli
) -> None:
    Path("torn.png").write_bytes(b"no picture")
    job = ("predict", run, pictures, "torn.png", "--set", "predict.batch_size=4")
    assert cli(*job, "-o", "one.csv").code == 0
    whole = Path("one.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("two.part-1-of-2.csv.partial").write_bytes(b"".join(lines[:5]) + lines[5][:9])  # killed
    shutil.copy("one.csv.made.json", "two.part-1-of-2.csv.partial.made.json")
    ended = as_by_srun(*job, "-o", "two.csv", "--skip-existing")
    assert ended.codes == [0, 0], ended.err
    assert "4 pictures were done already" in ended.out[0]
    assert f"{len(lines) - 5} rows written to two.csv" in ended.out[0]
    assert ended.out[1] == ended.err[1] == ""
    assert Path("two.csv").read_bytes() == whole
    made = {"one.csv.made.json", "two.csv.made.json"}
    assert {path.name for path in Path().iterdir()} == {"torn.png", "one.csv", "two.csv", *made}


def test_two_processes_fetch_shards_and_write_the_file_of_one(
    run: Path,
    pictures: Path,
    pack: Callable[..., Path],
    tmp_path: Path,
    own_cache: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = sorted((pictures / "train").rglob("*.png"))
    for part in range(3):
        members = {f"{n}.png": f.read_bytes() for n, f in enumerate(files[part::3])}
        pack(tmp_path / f"{part}.tar", members)
    monkeypatch.chdir("/")  # where the paths of this address start
    address = f"local:/{tmp_path}/{{0..2}}.tar"
    job = ("predict", run, address, "--set", "predict.batch_size=4")
    ended = as_by_srun(*job, "-o", tmp_path / "two.csv")
    assert ended.codes == [0, 0], ended.err
    assert f"fetching local:/{tmp_path}/0.tar and 2 more" in ended.out[0]
    assert ended.out[1] == ended.err[1] == ""
    times = [file.stat().st_mtime_ns for file in sorted(own_cache.rglob("*.tar"))]
    assert len(times) == 3
    assert cli(*job, "-o", tmp_path / "one.csv").code == 0
    assert times == [file.stat().st_mtime_ns for file in sorted(own_cache.rglob("*.tar"))]
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len((tmp_path / "two.csv").read_text().splitlines()) == 1 + len(files)


@pytest.mark.parametrize(
    ("outputs", "options", "what"),
    [
        (Outputs(), Predict(), "several processes predict into a file: name it with --output"),
        (Outputs(ROWS), Predict(select=3), "--select runs in one process, not in 2"),
        (Outputs(ROWS, saliency=Path("s")), Predict(), "--saliency runs in one process, not in 2"),
    ],
)
def test_what_cannot_be_predicted_in_parts_is_refused(
    outputs: Outputs, options: Predict, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match=what) as caught:
        check_outputs(outputs, options, 1)
    assert caught.value.exit_code == 2


def interrupt(event: Event) -> None:
    """Stop a run after its first epoch."""
    if isinstance(event, EpochEnded):
        raise KeyboardInterrupt


def test_a_run_of_one_process_goes_on_in_two_with_the_same_losses(
    tiny_config: Config, own_cache: Path
) -> None:
    config = replace(
        tiny_config,
        data=replace(tiny_config.data, balance="loss"),
        augment=replace(tiny_config.augment, views=2),
        training=replace(tiny_config.training, weight_decay=1e-2),
        optimizer=OptimizerOptions(name="sgd"),
    )
    verb.finetune(config, Path("one"), lambda event: None)
    with pytest.raises(UserError, match="interrupted"):
        verb.finetune(config, Path("two"), interrupt)
    ended = as_by_srun("finetune", "--resume", "two")
    assert ended.codes == [0, 0], ended.err
    assert "resuming in stage top 1 after epoch 1" in ended.out[0]
    assert ended.out[1] == ended.err[1] == ""
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "cached")
    expected = losses("one", *names)
    assert losses("two", *names) == pytest.approx(expected, abs=1e-5)
    assert set(losses("two", "cached")) == {0, 1}
    names_there = [path.name for path in own_cache.iterdir()]
    parts = [sum(name.endswith(f"-{part}-of-2") for name in names_there) for part in (1, 2)]
    assert parts == [2, 2]  # a part of the cache at each of the two boundaries
    assert RunFolder(Path("two")).has_model


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"budget": "1m"}, "--budget runs in one process, not in 2"),
        ({"group_by": "similar"}, "--group-by similar runs in one process, not in 2"),
        ({"lr": "auto"}, "--lr auto runs in one process, not in 2"),
        ({"batch_size": "auto"}, "--batch-size auto and --accumulate run in one process"),
        ({"accumulate": 2}, "--batch-size auto and --accumulate run in one process"),
        ({"batch_size": 1}, "--batch-size 1 is too small for 2 processes"),
    ],
)
def test_what_cannot_be_trained_in_parts_is_refused(
    tiny_config: Config, changes: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = "data" if "group_by" in changes else "training"
    changed = replace(getattr(tiny_config, section), **changes)
    config = replace(tiny_config, **{section: changed})
    refuse_sharing(config)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match=what) as caught:
        refuse_sharing(config)
    assert caught.value.exit_code == 2


def test_a_solve_of_two_processes_is_that_of_one(pictures: Path, cli: Cli) -> None:
    job = ("finetune", pictures, "--stages", "solve,1:1@1e-3,solve", *BACKBONE, "--augment", "none")
    # plain steps: Adam's blow rounding up
    job += ("--batch-size", "6", "--optimizer", "sgd", "--set", "backbone.pretrained=false")
    assert cli(*job, "--out", "one").code == 0
    ended = as_by_srun(*job, "--out", "two")
    assert ended.codes == [0, 0], ended.err
    names = ("val_loss", "val_accuracy", "train_loss")
    assert losses("two", *names) == pytest.approx(losses("one", *names), abs=1e-4)
    one, two = (RunFolder(Path(run)).read_json("summary") for run in ("one", "two"))
    assert two["leave_one_out"] == pytest.approx(one["leave_one_out"])
