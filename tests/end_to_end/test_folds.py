"""`--folds`: every picture is judged once, by a model that has seen nothing of its group."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transferkit.closed_form.left_out import Problem, solve
from transferkit.closed_form.sums import one_hot
from transferkit.config import Config
from transferkit.errors import UserError
from transferkit.events import Notice
from transferkit.finetuning.evidence import run_evidence
from transferkit.inference.out_of_fold import out_of_fold
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import open_run
from transferkit.training import loop
from transferkit.verbs import finetune as verb
from transferkit.verbs.evaluate import evaluate_folds
from transferkit.verbs.finetune import finetune, resume


def config(pictures: Path, cache: Path, **given: Any) -> Config:
    base = {
        "data.path": str(pictures),
        "backbone.name": "test_efficientnet",
        "backbone.pretrained": False,
        "backbone.image_size": 32,
        "augment.level": "none",
        "cache.dir": str(cache),
        "device.accelerator": "cpu",
        "device.engine": "torch",
        "training.batch_size": 6,
        "data.folds": 3,
    }
    return load_config(None, (), base | given)


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "draw", lambda *_: None)


def test_a_solve_judges_every_picture_without_its_fold(pictures: Path, tmp_path: Path) -> None:
    settings = {"stages": "solve", "solve.penalty": 0.01, "solve.depths": 5}
    grouped = {**settings, "data.group_by": r"(\d)\.png"}  # pictures of one number in all classes
    finetune(config(pictures, tmp_path, **grouped), tmp_path / "run", lambda _: None)
    run = open_run(tmp_path / "run")
    found, evidence = out_of_fold(run), run_evidence(tmp_path / "run")
    files = [
        evidence.index.file(int(p)).relative_to(pictures).as_posix() for p in evidence.positions
    ]
    order = [files.index(path) for path in found.paths]
    assert sorted(order) == list(range(18 + 12))  # training and validation pictures, each once
    features, labels = evidence.features[order], evidence.labels[order]
    assert torch.equal(labels, found.labels)
    stems = np.array([Path(path).stem for path in found.paths])
    for stem in np.unique(stems):
        assert len(found.folds[torch.from_numpy(stems == stem)].unique()) == 1
    whole = Problem(features, one_hot(labels, 3))
    spectrum = solve(whole, evidence.widths, 0.01).spectrum
    scaled = spectrum.scale.of(features)
    temperature = float(run.read_description()["temperature"])
    expected = torch.empty(30, 3, dtype=torch.float64)
    for fold in found.folds.unique():
        kept = found.folds != fold
        rest, targets = scaled[kept], one_hot(labels, 3)[kept].double()
        center, mean = rest.mean(0), targets.mean(0)
        gram = (rest - center) @ (rest - center).T + 0.01 * 30 * torch.eye(len(rest)).double()
        dual = torch.linalg.solve(gram, targets - mean)
        expected[~kept] = (scaled[~kept] - center) @ (rest - center).T @ dual + mean
    ratio = (found.logits * temperature)[0, 0] / expected[0, 0]  # scores over a temperature
    assert torch.allclose(found.logits * temperature, expected * ratio, atol=1e-4)
    summary = run.read_json("summary")
    right = found.logits.argmax(1) == labels
    assert summary["metrics"]["accuracy"] == pytest.approx(float(right.double().mean()))
    assert summary["folds"]["accuracy"] == summary["metrics"]["accuracy"]
    assert evaluate_folds(run).evaluation.headline["accuracy"] == summary["metrics"]["accuracy"]
    rows = run.read_predictions()
    assert [int(row["fold"]) - 1 for row in rows] == found.folds.tolist()


STAGES = {"stages": "1:1@1e-2"}


def test_stages_are_trained_without_each_fold(pictures: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    finetune(config(pictures, tmp_path, **STAGES), tmp_path / "run", told.append)
    assert any("trained 3 times more" in e.text for e in told if isinstance(e, Notice))
    run = open_run(tmp_path / "run")
    found = out_of_fold(run)
    assert sorted(found.paths) == sorted(str(path) for path in pictures.rglob("*.png"))
    for fold in range(3):
        own = open_run(tmp_path / "run" / "folds" / str(fold + 1))
        assert {row["path"] for row in own.read_predictions()} == {
            path for path, n in zip(found.paths, found.folds, strict=True) if n == fold
        }
        with (tmp_path / "run" / "folds" / f"{fold + 1}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["path"] for row in rows if row["split"] == "val"} <= set(found.paths)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["folds"]["pictures"] == 30
    assert len(summary["folds"]["by_fold"]) == 3
    with pytest.raises(UserError, match="was not judged by folds"):
        evaluate_folds(open_run(tmp_path / "run" / "folds" / "1"))


@pytest.mark.parametrize("steps", [2, 5, 8, 12])
def test_interrupted_in_any_fold_it_ends_the_same(
    steps: int, pictures: Path, tmp_path: Path, stopped_after: Any
) -> None:
    settings = config(pictures, tmp_path / "cache", **STAGES)
    finetune(settings, tmp_path / "whole", lambda _: None)
    with stopped_after(steps, loop), pytest.raises(UserError) as caught:
        finetune(settings, tmp_path / "run", lambda _: None)
    assert str(tmp_path / "run") in caught.value.remedy
    assert "folds/" not in caught.value.remedy
    resume(tmp_path / "run", lambda _: None)
    whole, again = (out_of_fold(open_run(tmp_path / name)) for name in ("whole", "run"))
    assert torch.equal(whole.logits, again.logits)
    assert whole.paths == again.paths
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


def test_more_folds_than_groups_are_refused(pictures: Path, tmp_path: Path) -> None:
    settings = {"stages": "solve", "data.folds": 9, "data.group_by": r"(\d)\.png"}
    with pytest.raises(UserError, match="more than there are groups"):
        finetune(config(pictures, tmp_path, **settings), tmp_path / "run", lambda _: None)


def test_what_a_head_has_seen_is_not_sampled(pictures: Path, tmp_path: Path) -> None:
    from transferkit.config import Predict
    from transferkit.inference.members import open_members
    from transferkit.inference.sampled import calibrated, validation_logits

    settings = config(pictures, tmp_path, stages="solve", **{"head.dropout": [0.2]})
    finetune(settings, tmp_path / "run", lambda _: None)
    options = replace(Predict(), mc_dropout=5)
    members = open_members([open_run(tmp_path / "run")], options, 4)
    with pytest.raises(UserError, match="was judged by folds"):
        validation_logits(members, options, True)
    (same,) = calibrated(members, options, True)
    assert same.loaded.temperature == members[0].loaded.temperature
