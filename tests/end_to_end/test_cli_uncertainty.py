"""`predict` and `evaluate` with samples, sets, thresholds and long jobs."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from transferkit.inference.uncertainty import uncertainty_of

Cli = Callable[..., Any]
MC = ("--mc-dropout", 8)
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")


def rows_of(result: Any) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = result.json["predictions"]
    return found


def test_samples_are_the_same_for_every_batch_size_and_give_the_columns(
    run: Path, pictures: Path, cli: Cli
) -> None:
    val = pictures / "val"
    one = rows_of(cli("predict", run, val, *MC, "--json", "--save-samples", "s.safetensors"))
    other = rows_of(cli("predict", run, val, *MC, "--batch-size", 5, "--json"))
    for a, b in zip(one, other, strict=True):
        numbers = {k: v for k, v in a.items() if isinstance(v, float)}
        assert numbers.pop("ood") == pytest.approx(b["ood"], abs=1e-2)  # tiny distances, rounded
        assert numbers == pytest.approx({k: b[k] for k in numbers}, abs=2e-6)
    samples = load_file("s.safetensors")["samples"].astype(np.float64)
    assert samples.shape == (12, 8, 3)
    found = uncertainty_of(samples)
    for name in ("mutual_information", "expected_entropy", "variation_ratio"):
        expected = getattr(found, name)
        assert [row[name] for row in one] == pytest.approx(expected, abs=1e-5)
    assert [row["std"] for row in one] == pytest.approx(
        np.take_along_axis(found.std, found.mean.argmax(1)[:, None], 1)[:, 0], abs=1e-5
    )
    assert max(row["mutual_information"] for row in one) > 0
    seeded = rows_of(cli("predict", run, val, *MC, "--seed", 1, "--json"))
    assert [row["std"] for row in seeded] != [row["std"] for row in one]
    bare = rows_of(cli("predict", run, val / "disc" / "0.png", "--json", "--mc-dropout"))
    assert bare[0]["std"] > 0


def test_scope_all_needs_dropout_in_the_backbone(run: Path, pictures: Path, cli: Cli) -> None:
    val = pictures / "val" / "disc"
    refused = cli("predict", run, val, *MC, "--mc-scope", "all")
    assert refused.code == 2
    assert "the backbone has no dropout" in refused.message[0]
    # this network has stochastic depth, but no shortcut that it could leave over
    useless = cli("predict", run, val, *MC, "--mc-scope", "all", "--enable-dropout", 0.3)
    assert useless.code == 2
    small = ("--backbone", "test_convnext", *TINY[2:], "--stages", "all:1", "--views", 0)
    made = cli("finetune", pictures, *small, "--drop-path", 0.3, "--out", "deep")
    assert made.code == 0, made.err
    every = ("--mc-scope", "all", "--json")
    a = rows_of(cli("predict", "deep", val, *MC, *every))
    b = rows_of(cli("predict", "deep", val, *MC, *every, "--batch-size", 1))
    head = rows_of(cli("predict", "deep", val, *MC, "--json"))
    assert [r["std"] for r in a] == pytest.approx([r["std"] for r in b], abs=2e-6)
    assert [r["std"] for r in a] != pytest.approx([r["std"] for r in head], abs=1e-4)
    thresholds = ("--target-accuracy", 0.3, "--coverage", 0.6)
    whole = pictures / "val"
    decided = rows_of(cli("predict", "deep", whole, *MC, *every, *thresholds))
    kept = [row for row in decided if not row["abstain"]]
    right = sum(Path(row["path"]).parent.name == row["label"] for row in kept)
    assert not kept or right >= 0.3 * len(kept)  # the pictures that it was chosen on
    inside = [Path(row["path"]).parent.name in row["set"].split(" | ") for row in decided]
    assert sum(inside) >= 0.6 * len(inside)
    assert len(list(Path("deep").glob("sampled-*"))) == 1
    again = rows_of(cli("predict", "deep", whole, *MC, *every, *thresholds))
    assert again == decided


def test_views_and_several_runs_are_samples_too(run: Path, pictures: Path, cli: Cli) -> None:
    val = pictures / "val" / "disc"
    again = cli("finetune", "--recipe", run, "--seed", 5, "--out", "second")
    assert again.code == 0, again.err
    single = [rows_of(cli("predict", r, val, "--json", "--top-k", 1)) for r in (run, "second")]
    both = rows_of(
        cli("predict", f"{run},second", val, "--json", "--save-samples", "s.safetensors")
    )
    samples = load_file("s.safetensors")["samples"]
    assert samples.shape == (4, 2, 3)
    for member in (0, 1):
        own = [row["probability"] for row in single[member]]
        assert samples[:, member].max(axis=1) == pytest.approx(own, abs=1e-5)
    assert both[0]["mutual_information"] >= 0
    views = rows_of(
        cli("predict", run, val, "--tta", 3, "--json", "--save-samples", "v.safetensors")
    )
    assert load_file("v.safetensors")["samples"].shape == (4, 3, 3)
    clean = load_file("v.safetensors")["samples"][:, 0].max(axis=1)
    assert clean == pytest.approx([row["probability"] for row in single[0]], abs=1e-5)
    assert max(row["std"] for row in views) > 0
    assert cli("predict", f"{run},{run}", val).code == 2


def test_temperature_can_be_left_out(run: Path, pictures: Path, cli: Cli) -> None:
    known = json.loads((run / "calibration.json").read_text())["temperature"]
    val = pictures / "val" / "disc"
    scaled, raw = (
        rows_of(cli("predict", run, val, "--json", *extra)) for extra in ((), ("--no-temperature",))
    )
    for a, b in zip(scaled, raw, strict=True):
        odds = [np.log(r["probability"] / r["probability_2"]) for r in (a, b)]
        assert odds[0] * known == pytest.approx(odds[1], abs=1e-3)


def test_sets_and_thresholds_follow_validation(run: Path, pictures: Path, cli: Cli) -> None:
    val = pictures / "val"
    for method in ("lac", "class", "aps", "raps"):
        rows = rows_of(cli("predict", run, val, "--coverage", 0.6, "--conformal", method, "--json"))
        assert all(
            row["set_size"] == len([n for n in row["set"].split(" | ") if n]) for row in rows
        )
    held = cli("evaluate", run, pictures, "--coverage", 0.6, "--json").json["sets"]
    assert held["coverage"] >= 0.6  # on the pictures the threshold was chosen on
    rows = rows_of(cli("predict", run, val, "--abstain-above", 0.5, "--json"))
    assert [row["abstain"] for row in rows] == [row["entropy"] > 0.5 for row in rows]
    curve = cli("evaluate", run, pictures, "--json").json
    target = curve["accuracy"]
    kept = rows_of(cli("predict", run, val, "--target-accuracy", target, "--json"))
    assert not any(row["abstain"] for row in kept)
    impossible = cli("predict", run, val, "--target-accuracy", 1.0)
    assert impossible.code == 0
    for wrong in (
        ("--enable-dropout", 0.2),
        ("--conformal", "aps"),
        ("--by", "bald", "--select", 2),
        ("--abstain-above", 1, "--target-accuracy", 0.9),
        ("--set", "training.lr=1"),
        ("--copy-to", "x"),
        ("--skip-existing",),
        ("-o", "rows.txt"),
    ):
        assert cli("predict", run, val, *wrong).code == 2, wrong


def test_pictures_unlike_the_training_data_have_a_column(
    run: Path, pictures: Path, cli: Cli
) -> None:
    val = pictures / "val"
    rows = rows_of(cli("predict", run, val, "--json"))
    assert sum(row["unlike"] for row in rows) <= 1  # chosen on these very pictures
    assert {row["ood"] > 1 for row in rows} == {row["unlike"] for row in rows}
    for method in ("mahalanobis", "energy"):
        others = rows_of(cli("predict", run, val, "--ood", method, "--json"))
        assert [r["ood"] for r in others] != [r["ood"] for r in rows]
    assert "ood" not in rows_of(cli("predict", run, val, "--ood", "none", "--json"))[0]


def test_a_killed_job_goes_on_without_repeats_or_gaps(
    run: Path, pictures: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pictures / "train", "many")
    Path("many/disc/broken.png").write_bytes(b"no")
    job = ("predict", run, "many", "-o", "rows.csv", "--batch-size", 4)
    assert cli(*job).code == 0
    expected = Path("rows.csv").read_bytes()
    whole = len(expected)
    for cut in (whole // 3, whole // 2 + 1, whole - 1):
        Path("rows.csv").unlink()
        Path("rows.csv.partial").write_bytes(expected[:cut])
        assert cli(*job, "--skip-existing").code == 0
        with Path("rows.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {r["path"] for r in rows} == {
            r["path"] for r in csv.DictReader(io.StringIO(expected.decode()))
        }
        assert len({r["path"] for r in rows}) == len(rows) == 19
    again = cli(*job, "--skip-existing")
    assert "1 rows written" in again.out  # all were there; the broken one is tried again


def test_a_list_on_standard_input(
    run: Path, pictures: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [pictures / "val/disc/1.png", Path("gone.png"), pictures / "val/disc/0.png"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{f}\n" for f in files)))
    rows = rows_of(cli("predict", run, "-", "--json"))
    assert [row["path"] for row in rows] == list(map(str, files))
    assert [row["error"] for row in rows] == ["", "missing", ""]


def test_features_are_those_of_the_validation(run: Path, pictures: Path, cli: Cli) -> None:
    assert cli("predict", run, pictures / "val", "--save-features", "f.safetensors").code == 0
    found = load_file("f.safetensors")["features"]
    known = load_file(run / "validation.safetensors")["features"].astype(np.float32)
    assert np.allclose(found, known, rtol=2e-3, atol=1e-3)


def test_selection_is_copied(run: Path, pictures: Path, cli: Cli) -> None:
    train = pictures / "train"
    for by in ("entropy", "margin", "diverse"):
        rows = rows_of(cli("predict", run, train, "--select", 5, "--by", by, "--json"))
        assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    bald = cli("predict", run, train, "--select", 3, "--by", "bald", *MC, "--copy-to", "next")
    assert bald.code == 0, bald.err
    assert len(list(Path("next").iterdir())) == 3


def test_a_runs_recipe_says_how_it_predicts(run: Path, pictures: Path, cli: Cli) -> None:
    quick = ("--stages", "1:1", "--views", "0", "--out", "own")
    made = cli("finetune", pictures, *TINY, *quick, "--set", "predict.top_k=1")
    assert made.code == 0, made.err
    val = pictures / "val" / "disc"
    assert "label_2" not in rows_of(cli("predict", "own", val, "--json"))[0]
    assert "label_2" in rows_of(cli("predict", "own", val, "--json", "--top-k", 2))[0]
    assert "label_2" in rows_of(cli("predict", "own", val, "--json", "--set", "predict.top_k=3"))[0]


def test_evaluation_says_what_the_uncertainty_is_worth(run: Path, pictures: Path, cli: Cli) -> None:
    found = cli("evaluate", run, pictures, *MC, "--json").json
    assert found["kept"][0] == {"kept": 1.0, "accuracy": pytest.approx(found["accuracy"])}
    assert set(found["wrong_detection"]) >= {"entropy", "mutual_information"}
    low, high = found["intervals"]["accuracy"]
    assert low <= found["accuracy"] <= high
    for pair in found["most_confused"]:
        assert all(f"/{pair['label']}/" in path for path in pair["examples"])
    assert "Detection of wrong predictions" in cli("evaluate", run, pictures).out
