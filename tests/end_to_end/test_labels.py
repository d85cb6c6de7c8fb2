"""Wrong labels from the command line: found, decided, corrected, and learned from."""

import csv
import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.backbones.create import create_backbone
from transferkit.inference.out_of_fold import out_of_fold
from transferkit.runs.folder import open_run

Cli = Callable[..., Any]
NAME = "test_efficientnet"
SHADES = ("dark", "light", "middle")
WRONG = {"train/dark/0.png": "light", "train/light/1.png": "middle", "val/middle/29.png": "dark"}
"""Where a picture lies -> what it shows."""
MAIN = (  # a shell that starts the tests in the background has Ctrl-C ignored: listen again
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from transferkit.cli import main; main()"
)


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 30 pictures of one shade each, of which `WRONG` show another."""
    root, generator = tmp_path_factory.mktemp("labels") / "shades", np.random.default_rng(0)
    lowest = {"dark": 20, "middle": 100, "light": 180}
    for name in SHADES:
        for number in range(30):
            path = f"{'train' if number < 24 else 'val'}/{name}/{number}.png"
            low = lowest[WRONG.get(path, name)]
            pixels = generator.integers(low, low + 50, (40, 40, 3), np.uint8)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Return the options of a tiny backbone."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(create_backbone(NAME, pretrained=False).model.state_dict(), path)
    network = ("--backbone", NAME, "--weights", path)
    return (*network, "--image-size", 32, "--crop", "backbone", "--engine", "torch")


@pytest.fixture
def corrections() -> Path:
    """Return a table that puts `WRONG` right, but for the last one, which it leaves out."""
    first, second, third = WRONG
    rows = f"{first},{WRONG[first]},\n{second},{WRONG[second]},\n{third},,\n"
    rows += "train/dark/2.png,dark,keep\n"
    Path("right.csv").write_text(f"path,label,action\n{rows}")
    return Path("right.csv")


def content(root: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_wrong_labels_are_found_and_nothing_is_changed(
    shades: Path, own: tuple[object, ...], cli: Cli
) -> None:
    before = content(shades)
    result = cli("labels", shades, *own, "--select", 5, "--output", "s.jsonl", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["pictures"] == 90
    assert abs(found["probably_wrong"] - 3) <= 1
    assert found["error"] > 0
    rows = found["suspects"]
    assert {row["path"]: row["proposed"] for row in rows[:3]} == WRONG
    pairs = {(pair["label"], pair["proposed"]) for pair in found["pairs"]}
    assert pairs == {(path.split("/")[1], shown) for path, shown in WRONG.items()}
    for row in rows:
        assert (row["label"], row["split"]) == tuple(row["path"].split("/")[1::-1])
        for near, name in (("near_label", row["label"]), ("near_proposed", row["proposed"])):
            assert [path.split("/")[1] for path in row[near]] == [name] * 3
            assert not {row["path"], *WRONG} & set(row[near])
    assert [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()] == rows
    told = cli("labels", shades, *own, "--output", "s.csv")
    assert told.code == 0
    assert "of 90 labels are wrong" in told.out
    assert "probably 3 ± " in told.out
    with open("s.csv", newline="") as lines:
        written = list(csv.DictReader(lines))
    assert {row["path"]: row["proposed"] for row in written[:3]} == WRONG
    assert len(written[0]["near_label"].split(" | ")) == 3
    assert content(shades) == before


def test_what_labels_cannot_write_is_refused(
    shades: Path, own: tuple[object, ...], cli: Cli
) -> None:
    Path("mine.csv").write_text("a,b\n")
    for name in ("s.parquet", "mine.csv"):
        assert cli("labels", shades, *own, "--output", name).code == 2
    assert Path("mine.csv").read_text() == "a,b\n"
    assert cli("labels").code == 2
    assert cli("labels", shades, "--backbone", "auto").code == 2


def test_corrected_labels_are_learned_from_and_measured(
    shades: Path, own: tuple[object, ...], corrections: Path, cli: Cli
) -> None:
    right = ("--corrections", corrections)
    told = "right.csv: 2 labels changed, 1 picture left out"
    found = cli("labels", shades, *own, *right, "--select", 88, "--json").json
    assert (found["pictures"], round(found["probably_wrong"])) == (86, 0)  # 3 were looked at
    assert not {row["path"] for row in found["suspects"]} & {*WRONG, "train/dark/2.png"}
    inspected = cli("inspect", shades, *right, "--json").json
    assert inspected["counts"]["dark"] == {"train": 23, "val": 6, "test": 0}
    assert told in inspected["warnings"]
    run = cli("finetune", shades, *own, *right, "--stages", "solve", "--out", "run", "--json")
    assert run.code == 0, run.err
    assert told in run.err
    assert run.json["metrics"]["accuracy"] == 1.0
    assert f'corrections = "{corrections.absolute()}"' in Path("run/recipe.toml").read_text()
    accuracies = [
        cli("evaluate", "run", shades, *more, "--split", "all", "--json").json["accuracy"]
        for more in ((), right)
    ]
    assert accuracies == [pytest.approx(87 / 90), 1.0]
    kept = cli("labels", "--run", "run", "--json").json
    assert (kept["pictures"], round(kept["probably_wrong"])) == (89, 0)
    seen = cli("labels", shades, "--run", "run", "--select", 2, "--json")
    assert {row["path"]: row["proposed"] for row in seen.json["suspects"]}.items() <= WRONG.items()
    alone = cli("labels", "--run", "run", *right)
    assert (alone.code, "--corrections has no effect" in alone.err) == (2, True)


def test_a_resumed_run_notices_other_corrections(
    shades: Path, own: tuple[object, ...], corrections: Path, cli: Cli
) -> None:
    plan = ("--stages", "solve", "--out", "run")
    assert cli("finetune", shades, *own, "--corrections", corrections, *plan).code == 0
    assert cli("finetune", "--resume", "run").code == 0
    text = corrections.read_text()
    corrections.write_text(text.replace("light,\n", "middle,\n", 1))
    changed = cli("finetune", "--resume", "run")
    assert changed.code == 1
    assert "the pictures have changed" in changed.err
    corrections.unlink()
    gone = cli("finetune", "--resume", "run")
    assert (gone.code, "--corrections" in gone.err, "does not exist" in gone.err) == (2, True, True)
    Path("elsewhere.csv").write_text(text)
    again = cli("finetune", "--resume", "run", "--corrections", "elsewhere.csv")
    assert again.code == 0, again.err
    assert "elsewhere.csv" in Path("run/recipe.toml").read_text()


@pytest.mark.parametrize("stages", ["solve", "solve, 1:1"])
def test_a_run_that_was_judged_by_folds_is_asked_out_of_fold(
    shades: Path, own: tuple[object, ...], cli: Cli, stages: str
) -> None:
    """Of one solve, and of a run for each fold."""
    plan = ("--stages", stages, "--views", 0, "--folds", 2, "--out", "run")
    run = cli("finetune", shades, *own, *plan)
    assert run.code == 0, run.err
    judged = out_of_fold(open_run(Path("run")))
    sure = judged.logits.double().softmax(1)
    found = cli("labels", "--run", "run", "--select", 90, "--json")
    assert found.code == 0, found.err
    assert "judged out of fold: 90 pictures" in found.err
    suspects = {str(Path(row["path"]).relative_to(shades)): row for row in found.json["suspects"]}
    assert len(suspects) == 90
    for path, label, row in zip(judged.paths, judged.labels, sure, strict=True):
        suspect = suspects[str(shades.joinpath(path).relative_to(shades))]
        assert suspect["probability_label"] == pytest.approx(float(row[label]), abs=1e-6)
    there = cli("labels", shades, "--run", "run", "--select", 90, "--json").json["suspects"]
    assert {row["path"] for row in there} == set(suspects)
    for row in there:
        assert row["probability"] == pytest.approx(suspects[row["path"]]["probability"], abs=1e-9)


def ask(address: str, path: str, **content: object) -> Any:
    found = urlsplit(address)
    connection = http.client.HTTPConnection(found.netloc, timeout=120)
    kind = {"Content-Type": "application/octet-stream", "Origin": f"http://{found.netloc}"}
    connection.request("POST", f"{path}?{found.query}", json.dumps(content), kind)
    response = connection.getresponse()
    assert response.status == 200
    return json.loads(response.read())


def test_a_killed_review_has_lost_nothing(shades: Path, own: tuple[object, ...], cli: Cli) -> None:
    command = ("view", shades, "--labels", "--select", 6, *own, "--no-browser", "--json")
    decided: list[dict[str, str] | None] = [None] * 6
    for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                address = json.loads(process.stdout.readline())["address"]
                assert ask(address, "/state")["decisions"] == decided
                for _ in range(2):
                    number = decided.index(None)
                    card = ask(address, "/card", number=number)
                    label = card["proposed"] if number < 3 else card["label"]
                    action = "change" if number < 3 else "keep"
                    decided[number] = {"action": action, "label": label}
                    state = ask(address, "/decide", number=number, action=action, label=label)
                    assert state["decisions"] == decided
                process.send_signal(kill)
                process.communicate(timeout=60)
            finally:
                process.kill()  # else a failure would wait for it
    assert process.returncode == 0
    with open("corrections.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["action"] for row in rows] == ["change"] * 3 + ["keep"] * 3
    assert {row["path"]: row["label"] for row in rows[:3]} == WRONG
    found = cli("labels", shades, *own, "--corrections", "corrections.csv", "--json").json
    assert (found["pictures"], round(found["probably_wrong"])) == (84, 0)


def test_options_of_the_other_page_are_refused(shades: Path, run: Path, cli: Cli) -> None:
    for arguments, flag in (
        ((shades, "--labels", "--mc-dropout", 3), "--mc-dropout has no effect with --labels"),
        ((shades, "--labels", "--set", "predict.tta=2"), "--set has no effect with --labels"),
        ((run, "--corrections", "c.csv"), "--corrections has no effect without --labels"),
        ((run, "--select", 3), "--select has no effect without --labels"),
        ((), "no run given"),
        ((shades, "--labels", "--corrections", "c.txt"), "must end in .csv"),
    ):
        refused = cli("view", *arguments, "--no-browser")
        assert (refused.code, flag in refused.message[0]) == (2, True), refused.err


def test_a_manifest_is_not_overwritten_by_decisions(shades: Path, cli: Cli) -> None:
    shutil.copytree(shades, "data")
    files = [path.relative_to("data") for path in sorted(Path("data").rglob("*.png"))]
    rows = [f"{path.as_posix()},{path.parent.name},{path.parts[0]}" for path in files]
    Path("data/table.csv").write_text("\n".join(["path,label,split", *rows]))
    table = ("--manifest", "data/table.csv")
    refused = cli("view", "--labels", *table, "--corrections", "data/table.csv", "--no-browser")
    assert (refused.code, "names the manifest" in refused.err) == (2, True)
