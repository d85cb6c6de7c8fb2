"""A plan that begins with pretraining: as two commands, and taken up wherever it stopped."""

from pathlib import Path
from typing import Any

import pytest

from transferkit.config import Config
from transferkit.errors import UserError
from transferkit.pretraining import loop as pretraining_loop
from transferkit.recipes.reading import config_of, load_config
from transferkit.runs.folder import open_run
from transferkit.training import loop
from transferkit.verbs import finetune as verb
from transferkit.verbs.finetune import finetune, resume
from transferkit.verbs.pretrain import pretrain

PLAN = "autoencoder:2, solve, 1:1@1e-2"
NETWORK = {
    "backbone.name": "cnn",
    "backbone.image_size": 32,
    "backbone.depth": 2,
    "backbone.width": 8,
    "device.accelerator": "cpu",
    "device.engine": "torch",
}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "draw", lambda *_: None)


def config(pictures: Path, cache: Path, **given: Any) -> Config:
    base = {"data.path": str(pictures), "cache.dir": str(cache), "training.batch_size": 6}
    small = {"pretraining.batch_size": 8, "pretraining.holdout": 0.0}
    return load_config(None, (), NETWORK | base | small | given)


def model_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_it_equals_pretrain_and_finetune_from_it(
    pictures: Path, unlabeled: Path, tmp_path: Path
) -> None:
    one = config(pictures, tmp_path / "a", stages=PLAN, **{"data.unlabeled": str(unlabeled)})
    finetune(one, tmp_path / "one", lambda _: None)
    learning = {"pretraining.method": "autoencoder", "pretraining.epochs": 2}
    first = config(unlabeled, tmp_path / "b", **learning)
    pretrain(first, tmp_path / "first", lambda _: None)
    inside = tmp_path / "one" / "pretraining"
    assert model_of(inside) == model_of(tmp_path / "first")
    rest = {"stages": "solve, 1:1@1e-2", "backbone.from_run": str(tmp_path / "first")}
    network = {name: value for name, value in NETWORK.items() if not name.startswith("backbone")}
    base = {"data.path": str(pictures), "training.batch_size": 6, "cache.dir": str(tmp_path / "b")}
    finetune(load_config(None, (), base | network | rest), tmp_path / "two", lambda _: None)
    assert model_of(tmp_path / "one") == model_of(tmp_path / "two")
    known = config_of(open_run(tmp_path / "one"))
    assert [stage.text for stage in known.stages] == ["autoencoder:2", "solve", "1:1@0.01"]
    summary = open_run(tmp_path / "one").read_json("summary")
    assert summary["pretraining"]["method"] == "autoencoder"
    assert summary["pretraining"]["epochs"] == 2
    page = (tmp_path / "one" / "report.html").read_text()
    assert "autoencoder learned from" in page
    assert "pretraining/report.html" in page


@pytest.mark.parametrize("where", ["pretraining", "1", "2"])
def test_stopped_anywhere_it_ends_the_same(
    where: str, pictures: Path, unlabeled: Path, tmp_path: Path, stopped_after: Any
) -> None:
    plan = config(pictures, tmp_path / "cache", stages=PLAN, **{"data.unlabeled": str(unlabeled)})
    finetune(plan, tmp_path / "whole", lambda _: None)
    module = pretraining_loop if where == "pretraining" else loop
    steps = 2 if where == "pretraining" else int(where)
    with stopped_after(steps, module), pytest.raises(UserError) as caught:
        finetune(plan, tmp_path / "run", lambda _: None)
    assert f"finetune --resume {tmp_path / 'run'}" in caught.value.remedy
    assert "run/pretraining" not in caught.value.remedy
    resume(tmp_path / "run", lambda _: None)
    assert model_of(tmp_path / "run") == model_of(tmp_path / "whole")
    assert model_of(tmp_path / "run" / "pretraining") == model_of(tmp_path / "whole/pretraining")


def test_without_a_folder_it_learns_from_the_training_pictures(
    pictures: Path, tmp_path: Path
) -> None:
    finetune(config(pictures, tmp_path / "c", stages=PLAN), tmp_path / "run", lambda _: None)
    inside = config_of(open_run(tmp_path / "run" / "pretraining"))
    assert inside.data.path == pictures / "train"


def test_wrong_pictures_are_told_before_anything_is_learned(
    unlabeled: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    plan = config(gone, tmp_path / "c", stages=PLAN, **{"data.unlabeled": str(unlabeled)})
    with pytest.raises(UserError, match="does not exist"):
        finetune(plan, tmp_path / "run", lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"stages": "solve, simclr:3"}, "pretraining comes first, and once"),
        ({"stages": "simclr:3, simclr:2, solve"}, "pretraining comes first, and once"),
        ({"stages": "solve", "data.unlabeled": "x"}, "has no effect without"),
        ({"stages": "simclr:soon, solve"}, "must be a time"),
        ({"stages": "simclr:3, 1:2", "training.budget": "5m"}, "--budget"),
        ({"stages": "simclr:3, solve", "pretraining.mask_ratio": 0.5}, "mask_ratio has no effect"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_config(None, (), given)


def test_a_time_or_a_number_of_epochs_is_that_of_pretraining() -> None:
    found = load_config(None, (), {"stages": "simclr:20m, solve"})
    assert (found.pretraining.method, found.pretraining.budget) == ("simclr", "20m")
    assert found.pretraining.epochs is None
    assert found.after_pretraining.only_solves
    found = load_config(None, (), {"stages": "gan:7, all:2", "backbone.name": "cnn"})
    assert (found.pretraining.method, found.pretraining.epochs) == ("gan", 7)
