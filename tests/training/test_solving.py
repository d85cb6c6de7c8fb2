"""A closed-form stage in a run: what it gives, what it leaves alone, how it is interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from transferkit.errors import UserError
from transferkit.finetuning import final_validation
from transferkit.inference.calibration import fit_temperature
from transferkit.inference.members import Extractor
from transferkit.inference.pipeline import batches
from transferkit.inference.predict import head_logits, load_run, picture_engine
from transferkit.recipes.reading import config_of, load_config
from transferkit.recipes.typed import parse_stages
from transferkit.reporting.run_page import certainty
from transferkit.runs.folder import open_run
from transferkit.training import material, solve_features, solving
from transferkit.verbs.finetune import finetune, resume
from transferkit.verbs.report import run_data

Ran = Callable[..., Path]
SOLVE = {"stages": "solve"}
BETWEEN = {"stages": "solve,1:2@1e-2,solve"}


def logits_of(run: Path, files: list[Path]) -> torch.Tensor:
    loaded = load_run(open_run(run))
    device = torch.device("cpu")
    engine = picture_engine(loaded.classifier, loaded.maker, len(files), "torch", device)
    (batch,) = batches([Extractor(loaded.maker, engine)], files, len(files))
    return head_logits(loaded.classifier, batch.features[0][:, 0])


def pictures_of(run: Path, pictures: Path) -> list[Path]:
    return [pictures / row["path"] for row in open_run(run).read_predictions()]


def test_the_kept_model_answers_as_the_solve_did(train_with: Ran, pictures: Path) -> None:
    run = train_with(SOLVE)
    kept = open_run(run).load_validation()
    assert kept is not None
    found = logits_of(run, pictures_of(run, pictures))
    torch.testing.assert_close(found, kept["logits"], rtol=1e-4, atol=1e-4)
    row = open_run(run).read_metrics()[0]
    assert (row["stage_name"], row["best"], row["cached"]) == ("solve", 1, 0)
    right = (kept["logits"].argmax(1) == kept["labels"]).double().mean()
    assert row["val_accuracy"] == pytest.approx(float(right))


def centre_and_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    std = features.std(0)
    return features.mean(0), np.where(std > 0, std, 1) * features.shape[1] ** 0.5


def test_it_is_ridge_regression_on_the_standardised_features(
    train_with: Ran, pictures: Path
) -> None:
    penalty = 0.03
    run = train_with(SOLVE | {"solve.penalty": penalty, "solve.depths": "last"})
    folder = open_run(run)
    reference, validation = folder.load_reference(), folder.load_validation()
    assert reference is not None
    assert validation is not None
    features, labels = reference["features"].double().numpy(), reference["labels"].numpy()
    mean, scale = centre_and_scale(features)
    model = Ridge(alpha=penalty * len(labels))
    model.fit((features - mean) / scale, np.eye(labels.max() + 1)[labels])
    scores = model.predict((validation["features"].double().numpy() - mean) / scale)
    logits = validation["logits"].double().numpy()
    # the temperature is a factor; the features are kept in half precision
    factor = (logits * scores).sum() / (scores * scores).sum()
    assert np.abs(logits / factor - scores).max() < 2e-2
    assert np.array_equal(logits.argmax(1), scores.argmax(1))


def test_a_closing_solve_leaves_the_stages_before_it_alone(
    ran: Callable[..., list[dict[str, Any]]],
) -> None:
    alone, closed = ran({"stages": "1:2@1e-2"}), ran({"stages": "1:2@1e-2,solve"})
    assert len(closed) == 3
    for one, other in zip(alone, closed, strict=False):
        assert {k: v for k, v in one.items() if k != "best"} == {
            k: v for k, v in other.items() if k != "best" and k in one
        }


def test_the_best_by_validation_is_kept_whichever_it_is(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = open_run(train_with(BETWEEN))
    rows = solved.read_metrics()
    best = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert [row for row in rows if row["best"]][-1] == best
    true = solving.accuracies
    monkeypatch.setattr(solving, "accuracies", lambda *given: true(*given) | {"val_accuracy": 0.0})
    trained = open_run(train_with(BETWEEN))
    assert "depths" not in trained.read_description()
    assert [row["stage_name"] for row in trained.read_metrics() if row["best"]][-1] == "top 1"


@pytest.mark.parametrize("where", ["see", "keep", "save_last"])
def test_interrupted_in_any_part_it_ends_the_same(
    where: str, train_with: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train_with(BETWEEN)
    config = config_of(open_run(whole))
    calls = []
    true = getattr(solving, where)

    def once(*given: Any) -> Any:
        calls.append(where)
        if len(calls) == 2:  # in the closing solve
            raise KeyboardInterrupt
        return true(*given)

    with monkeypatch.context() as patch:
        patch.setattr(solving, where, once)
        with pytest.raises(UserError, match="interrupted"):
            finetune(config, tmp_path / "run", lambda _: None)
    resume(tmp_path / "run", lambda _: None)
    for name in ("model.safetensors", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_class_weights_change_the_solution(train_with: Ran) -> None:
    plain = train_with(SOLVE | {"solve.penalty": 0.1})
    again = train_with(SOLVE | {"solve.penalty": 0.1})
    mirrored = train_with(SOLVE | {"solve.penalty": 0.1, "solve.mirror": "on"})
    model = [(run / "model.safetensors").read_bytes() for run in (plain, again, mirrored)]
    assert model[0] == model[1]
    assert model[0] != model[2]


def test_networks_from_scratch_are_solved_too(train_with: Ran) -> None:
    run = train_with(SOLVE | {"backbone.name": "cnn", "backbone.depth": 2, "backbone.width": 8})
    assert len(open_run(run).read_description()["depths"]) >= 2


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(UserError, match="no effect without a stage"):
        load_config(None, (), {"stages": "head:3", "solve.depths": "last"})
    with pytest.raises(UserError, match="every stage is solved"):
        load_config(None, (), {"stages": "solve", "training.lr": "auto"})
    assert load_config(None, (), {"stages": "solve,head:3", "training.lr": "auto"}).solves
    assert parse_stages("solve, head:2")[0] == {"unfreeze": "solve", "epochs": 1}


def test_a_backbone_that_has_seen_the_labels_is_judged_by_validation(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    true = solving.choose
    monkeypatch.setattr(solving, "choose", lambda *given: asked.append(given[2]) or true(*given))
    rows = open_run(train_with(BETWEEN)).read_metrics()
    assert asked == [False, True]
    solves = [row for row in rows if row["stage_name"] == "solve"]
    gaps = [row["train_accuracy"] - row["val_accuracy"] for row in solves]
    assert gaps[1] >= gaps[0]  # leave-one-out says more than validation bears out
    summary = open_run(train_with(BETWEEN)).read_json("summary")["leave_one_out"]
    assert summary["accuracy"] == pytest.approx(solves[0]["train_accuracy"])
    assert summary["low"] < summary["accuracy"] < summary["high"] or summary["accuracy"] == 1
    assert summary["pictures"] == 18


def test_a_solve_on_an_unchanged_backbone_is_skipped(train_with: Ran) -> None:
    run = open_run(train_with({"stages": "solve,solve"}))
    assert len(run.read_metrics()) == 1
    reasons = [stage["reason"] for stage in run.read_json("summary")["stages"]]
    assert reasons[0] == "finished"
    assert reasons[1].startswith("skipped")


def test_many_pictures_are_solved_from_their_sums(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SOLVE | {"solve.penalty": 0.1, "solve.depths": 2, "data.balance": "loss"}
    whole = open_run(train_with(options)).load_validation()
    monkeypatch.setattr(material, "MOST_JUDGED", 7)
    folder = open_run(train_with(options))
    summed = folder.load_validation()
    assert whole is not None
    assert summed is not None
    assert folder.read_json("summary")["leave_one_out"]["pictures"] == 7
    # the temperature is fitted to those that judge
    assert torch.allclose(
        *(each["logits"] / each["logits"].std() for each in (whole, summed)), atol=1e-5
    )


def test_depths_whose_products_do_not_fit_are_left_out(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "MOST_JUDGED", 7)
    monkeypatch.setattr(solve_features, "MOST_COLUMNS", 1)
    run = train_with(SOLVE | {"solve.depths": 3})
    assert [depth["name"] for depth in open_run(run).read_description()["depths"]] == ["features"]
    assert "top 1 depths: more would not fit" in (run / "log.txt").read_text()


def test_a_closing_solve_at_another_size(train_with: Ran, pictures: Path) -> None:
    run = train_with({"stages": "solve,1:1@1e-9,solve@48", "training.metric": "loss"})
    folder = open_run(run)
    assert [row["stage_name"] for row in folder.read_metrics()][-1] == "solve@48"
    alone = train_with({"stages": "solve@48"})
    description = open_run(alone).read_description()
    size = description["preprocessing"]
    assert (description["image_size"], size["width_px"], size["height_px"]) == (48, 48, 48)
    whole = train_with({"stages": "solve", "backbone.image_size": 48})
    for name in ("model.safetensors", "predictions.csv"):
        assert (alone / name).read_bytes() == (whole / name).read_bytes()
    kept = open_run(alone).load_validation()
    assert kept is not None
    found = logits_of(alone, pictures_of(alone, pictures))
    torch.testing.assert_close(found, kept["logits"], rtol=1e-4, atol=1e-4)


def test_solves_of_two_sizes_on_one_backbone_both_run(train_with: Ran) -> None:
    rows = open_run(train_with({"stages": "solve,solve@48,solve@48"})).read_metrics()
    assert [row["stage_name"] for row in rows] == ["solve", "solve@48"]


def test_a_size_that_the_backbone_does_not_take_is_refused(train_with: Ran) -> None:
    with pytest.raises(UserError, match="mlp cannot take pictures of that size"):
        train_with({"stages": "solve@20", "backbone.name": "mlp", "backbone.image_size": 16})


def test_with_few_validation_pictures_it_is_calibrated_on_leave_one_out(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    penalty = 0.03
    run = train_with(SOLVE | {"solve.penalty": penalty, "solve.depths": "last"})
    folder = open_run(run)
    reference, kept = folder.load_reference(), folder.load_validation()
    assert reference is not None
    assert kept is not None
    features, labels = reference["features"].double().numpy(), reference["labels"].numpy()
    mean, scale = centre_and_scale(features)
    z = (features - mean) / scale
    targets, scores = np.eye(3)[labels], np.empty((len(labels), 3))
    for n in range(len(labels)):
        rest = np.arange(len(labels)) != n
        ridge = Ridge(alpha=penalty * len(labels)).fit(z[rest], targets[rest])
        scores[n] = ridge.predict(z[n : n + 1])[0]
    order = np.array([np.abs(scores / scores.std() - s).sum(1).argmin() for s in unit(kept)])
    assert sorted(order) == list(range(len(labels)))
    ratio = scores[order] / kept["left_out_logits"].double().numpy()
    assert ratio == pytest.approx(np.full_like(ratio, ratio.mean()), rel=0.02)  # one temperature
    found = folder.read_json("calibration")
    assert found is not None
    assert (found["judged_on"], found["pictures"]) == ("leave-one-out", len(labels))
    own = fit_temperature(kept["left_out_logits"].double(), kept["left_out_labels"])
    assert found["temperature"] == pytest.approx(own)
    monkeypatch.setattr(final_validation, "FEW_TO_CALIBRATE", 0)
    plain = open_run(train_with(SOLVE)).read_json("calibration")
    assert plain is not None
    assert (plain["judged_on"], plain["pictures"]) == ("validation", 12)


def unit(kept: dict[str, torch.Tensor]) -> np.ndarray:
    logits = kept["left_out_logits"].double().numpy()
    return np.asarray(logits / logits.std())


def test_what_a_trained_backbone_says_of_its_training_pictures_calibrates_nothing(
    train_with: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solving, "has_learned", lambda run: True)
    found = open_run(train_with(SOLVE)).read_json("calibration")
    assert found is not None
    assert found["judged_on"] == "validation"


@pytest.mark.parametrize(("dropout", "held"), [([0.4], True), ([0.0], False)])
def test_what_samples_of_dropout_say_stands_in_the_report(
    train_with: Ran, dropout: list[float], held: bool
) -> None:
    run = train_with(SOLVE | {"head.dropout": dropout})
    found = open_run(run).read_json("calibration")
    note = certainty(run_data(open_run(run)))["reliability_note"]
    assert found is not None
    assert (found["sampled"] is not None) == held
    assert ("samples of MC dropout: ECE" in note) == held
    if held:
        assert f"{found['sampled']['after']['ece']:.3f} with its own" in note
        assert found["sampled"]["after"] != found["after"]
