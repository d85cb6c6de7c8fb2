"""Backbones by leave-one-out: ranking, halving, front, and what the run that follows reads."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import BackboneOptions, Cache, Config, Data, Device, Stage
from transferkit.errors import UserError
from transferkit.events import Event, Notice
from transferkit.finetuning import backbone_choice, input_choice
from transferkit.finetuning.backbone_choice import Choice, Field, Row, choose_backbone, marked
from transferkit.finetuning.pictures import read_index
from transferkit.recipes.reading import config_of, validate
from transferkit.runs.folder import open_run
from transferkit.stopwatch import Stopwatch
from transferkit.training import depth_features, network
from transferkit.verbs.finetune import finetune

SMALL, LARGE = "test_efficientnet", "test_resnet"


@pytest.fixture(autouse=True)
def _two_tiny_backbones(few_are_enough: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures are enough; the backbones at hand are two of random weights."""
    monkeypatch.setattr(backbone_choice, "LEAST_PICTURES", 10)
    monkeypatch.setattr(input_choice, "WHOLE_PICTURE", ("squash",))
    monkeypatch.setattr(backbone_choice, "find_candidates", lambda: ([SMALL, LARGE], "no route"))
    monkeypatch.setattr(
        network,
        "create_backbone",
        lambda *given, **more: create_backbone(*given, **more | {"pretrained": False}),
    )


@pytest.fixture
def config(strips: Path, tmp_path: Path) -> Config:
    return Config(
        data=Data(path=strips),
        backbone=BackboneOptions("auto", image_size=32),
        cache=Cache(dir=tmp_path / "cache"),
        device=Device(accelerator="cpu", engine="torch"),
        stages=(Stage("solve", 1),),
    )


def chosen(config: Config, told: list[Event], **more: Any) -> Choice:
    index = read_index(config, told.append, Stopwatch())
    return choose_backbone(config, index, torch.device("cpu"), told.append, **more)


def row(name: str, accuracy: float, speed: float, size: int, **more: Any) -> Row:
    values: dict[str, Any] = {"pictures": 400, "loss": 0.1, "error": 0.01, "survived": True} | more
    return Row(
        backbone=name,
        crop="center",
        image_size=224,
        framing="center",
        accuracy=accuracy,
        val_accuracy=None,
        speed=speed,
        weights_bytes=size,
        license="mit",
        imagenet=None,
        features_s=1,
        accuracies=more.get("accuracies", {values["pictures"]: accuracy}),
        **{k: v for k, v in values.items() if k != "accuracies"},
    )


def test_the_framing_that_shows_the_classes_is_first(config: Config) -> None:
    told: list[Event] = []
    choice = chosen(config, told)
    assert {r.backbone for r in choice.rows} == {SMALL, LARGE}
    assert [r.framing for r in choice.rows if r.backbone == SMALL] == ["squash", "center"]
    best = choice.rows[choice.best]
    assert (best.framing, best.pictures, best.val_accuracy) == ("squash", 24, 1.0)
    assert choice.rows[-1].framing == "center"
    assert choice.rows[-1].pictures == 8  # dropped on the first rung
    assert choice.rows[choice.smallest].framing == "squash"


def test_a_row_is_dropped_where_it_is_worse_by_more_than_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def contest(*losses: float) -> Any:
        return SimpleNamespace(trial=SimpleNamespace(losses={4: torch.tensor(losses)}))

    monkeypatch.setattr(backbone_choice, "finished", lambda contest, count: (contest, count))
    best, near = contest(0.1, 0.2, 0.1, 0.2), contest(0.9, 0.0, 0.1, 0.2)
    far = contest(0.2, 0.3, 0.2, 0.35)  # worse by 0.1125 ± 0.0125
    field = Field([near, far, best], [])
    field.halve(4)
    assert field.alive == [near, best]  # worse by 0.15 ± 0.22
    assert field.done == [(far, 4)]


def test_front_best_and_smallest_of_known_points() -> None:
    rows = [
        row("slow", 0.99, 10, 90),
        row("quick", 0.90, 99, 5, error=0.015),
        row("beaten", 0.90, 50, 4),
        row("small", 0.981, 20, 8),
        row("lucky", 0.97, 15, 1, pictures=100, survived=False, accuracies={100: 0.97}),
    ]
    for number in (0, 1, 2, 3):  # all saw the first hundred
        rows[number].accuracies[100] = 0.98
    choice = marked(rows, ())
    names = [r.backbone for r in choice.rows]
    assert names == ["slow", "small", "quick", "beaten", "lucky"]
    assert [names[n] for n in choice.front] == ["slow", "small", "quick"]
    assert names[choice.best] == "slow"
    assert names[choice.smallest] == "small"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    true = depth_features.read_batches

    def count(*given: Any) -> Any:
        read.extend([len(given[2])] if len(given[2]) else [])
        return true(*given)

    monkeypatch.setattr(depth_features, "read_batches", count)
    monkeypatch.setattr("transferkit.training.solve_features.read_batches", count)
    return read


def test_the_run_that_follows_reads_no_picture_of_the_choice_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = (choice := chosen(config, [])).rows[choice.best]
    named = replace(config.backbone, name=best.backbone, crop="squash")
    read = counted(monkeypatch)
    for run, cache in (("with", config.cache), ("without", Cache(dir=tmp_path / "empty"))):
        finetune(replace(config, backbone=named, cache=cache), tmp_path / run, lambda _: None)
    assert read == [32 - 24, 8, 8, 8, 32 - 24, 12]
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("with", "without")]
    assert models[0] == models[1]


def test_a_damaged_file_of_features_is_not_taken(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = (choice := chosen(config, [])).rows[choice.best]
    for file in (tmp_path / "cache" / "features").glob("*"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    read = counted(monkeypatch)
    named = replace(config.backbone, name=best.backbone, crop="squash")
    finetune(replace(config, backbone=named), tmp_path / "run", lambda _: None)
    assert sum(read) == 32 + 12


def test_auto_takes_the_smallest_and_writes_it_down(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = chosen(config, [])
    told: list[Event] = []
    finetune(config, tmp_path / "run", told.append)
    smallest = choice.rows[choice.smallest]
    kept = config_of(open_run(tmp_path / "run")).backbone
    assert (kept.name, kept.crop, kept.image_size) == (smallest.backbone, "squash", 32)
    (line,) = [e.text for e in told if isinstance(e, Notice) and e.text.startswith("backbone: ")]
    assert f"{smallest.backbone} at 32 px, squash" in line


def test_past_the_budget_nothing_is_begun(config: Config) -> None:
    told: list[Event] = []
    choice = chosen(config, told, budget_s=0)
    assert [(r.backbone, r.pictures, r.val_accuracy) for r in choice.rows] == [(SMALL, 8, None)]
    assert choice.not_tried[-1] == LARGE
    assert any("the time is over after 8 pictures" in e.text for e in told if isinstance(e, Notice))


@pytest.mark.parametrize(
    ("names", "said"),
    [(["effisientnet_b0"], "unknown backbone 'effisientnet_b0'"), (["mlp"], "no pretrained")],
)
def test_names_that_cannot_be_are_refused(config: Config, names: Sequence[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        chosen(config, [], names=names)
    assert caught.value.exit_code == 2


def test_a_backbone_whose_features_are_not_finite_is_left_out(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, *given: Any, **more: Any) -> Any:
        backbone = create_backbone(name, *given, **more | {"pretrained": False})
        if name == SMALL:
            torch.nn.init.constant_(backbone.model.conv_stem.weight, float("nan"))
        return backbone

    monkeypatch.setattr(network, "create_backbone", broken)
    told: list[Event] = []
    choice = chosen(config, told)
    assert {r.backbone for r in choice.rows} == {LARGE}
    (line,) = [e.text for e in told if isinstance(e, Notice) and SMALL in e.text]
    assert "left out" in line
    assert "not finite" in line
    with pytest.raises(UserError, match="not finite"):
        chosen(config, [], names=[SMALL, LARGE])


def test_few_pictures_are_refused_with_what_to_do(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_choice, "LEAST_PICTURES", 60)
    with pytest.raises(UserError, match="32 training pictures are too few") as caught:
        chosen(config, [])
    assert "--backbone tf_efficientnet_lite0" in caught.value.remedy


def test_one_candidate_alone_is_told_with_what_to_install(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_choice, "find_candidates", lambda: ([SMALL], "no route"))
    told: list[Event] = []
    chosen(config, told)
    (text,) = [e.text for e in told if isinstance(e, Notice)]
    assert "only one backbone" in text
    assert "pip install 'transferkit[offline]'" in text


def test_where_nothing_can_be_tried_a_line_says_so(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = replace(config, backbone=replace(config.backbone, image_size=40))
    monkeypatch.setattr(backbone_choice, "find_candidates", lambda: (["test_vit"], ""))
    with pytest.raises(UserError, match="there is no backbone to try"):
        chosen(unfit, [])


@pytest.mark.parametrize("given", [{"weights": "a.pt"}, {"pretrained": False}, {"reuse_blocks": 1}])
def test_auto_beside_other_weights_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="name auto") as caught:
        validate({"backbone": {"name": "auto", **given}})
    assert caught.value.exit_code == 2
