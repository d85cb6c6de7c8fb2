"""Framing and input size by leave-one-out: what is tried, what is taken, what a solve reads."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import BackboneOptions, Cache, Config, Data, Device, Solve, Stage
from transferkit.errors import UserError
from transferkit.events import Event, Notice
from transferkit.finetuning import input_choice
from transferkit.recipes.reading import config_of
from transferkit.runs.folder import open_run
from transferkit.training import depth_features, solving
from transferkit.verbs.finetune import finetune, resume

pytestmark = pytest.mark.usefixtures("few_are_enough")


@pytest.fixture
def config(strips: Path, tmp_path: Path) -> Config:
    """A solve on a small network with a weights file, as it comes: framing and size are open."""
    weights = tmp_path / "weights.pt"
    model = create_backbone("test_efficientnet", pretrained=False, image_size=32).model
    torch.save(model.state_dict(), weights)
    return Config(
        data=Data(path=strips),
        backbone=BackboneOptions("test_efficientnet", weights=weights, image_size=32),
        cache=Cache(dir=tmp_path / "cache"),
        device=Device(accelerator="cpu", engine="torch"),
        stages=(Stage("solve", 1),),
    )


def ran(config: Config, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Run; return the preprocessing that the model is described with, and the notices."""
    told: list[Event] = []
    finetune(config, out, told.append)
    size = open_run(out).read_description()["preprocessing"]
    return size, [event.text for event in told if isinstance(event, Notice)]


def test_the_whole_picture_is_taken_where_its_end_tells(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_choice, "WHOLE_PICTURE", ("squash",))
    size, told = ran(config, tmp_path / "auto")
    assert size["crop_mode"] == "squash"
    assert config_of(open_run(tmp_path / "auto")).backbone.crop == "squash"
    (line,) = [text for text in told if "by leave-one-out accuracy" in text]
    assert line.startswith("pictures: squashed to 32 px, by")
    assert "centre crop of 32 px" in line
    fixed = replace(config, backbone=replace(config.backbone, crop="squash"))
    again, told = ran(fixed, tmp_path / "fixed")
    assert again == size
    assert not any("by leave-one-out accuracy" in text for text in told)
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("auto", "fixed")]
    assert models[0] == models[1]  # what the choice has read, the solve need not read, and may


def test_what_the_choice_has_read_is_not_read_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    true = depth_features.read_batches

    def counted(*given: Any) -> Any:
        read.append(len(given[2]))
        return true(*given)

    monkeypatch.setattr(depth_features, "read_batches", counted)
    monkeypatch.setattr("transferkit.training.solve_features.read_batches", counted)
    ran(config, tmp_path / "run")
    # the centre and the whole by 8, 8 and 8, the padded by 8 and perhaps more, then what is left
    assert read[:2] == [8, 8]
    assert read[-1] == 12  # validation
    assert read[-2] == 32 - 24  # the training pictures that were not tried


@pytest.mark.parametrize(
    ("errors", "side_px"), [(-1e9, 64), (1e9, 48)], ids=["no worse", "never better"]
)
def test_a_larger_size_is_tried_and_judged(
    errors: float, side_px: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_choice, "CLEARLY", errors)
    monkeypatch.setattr(
        "transferkit.training.network.create_backbone",
        lambda *given, **more: create_backbone(
            *given, **more | {"image_size": more["image_size"] or 48}
        ),
    )
    open_size = replace(config.backbone, image_size="auto", crop="squash")
    size, told = ran(replace(config, backbone=open_size), tmp_path / "run")
    assert any("squashed to 64 px" in text for text in told)
    assert size["width_px"] == side_px
    kept = config_of(open_run(tmp_path / "run")).backbone.image_size
    assert kept == (64 if side_px == 64 else "backbone")


def test_resumed_it_does_not_choose_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(config, tmp_path / "whole")

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(solving, "keep", stop)
        with pytest.raises(UserError, match="interrupted"):
            finetune(config, tmp_path / "run", lambda _: None)
    monkeypatch.setattr(input_choice, "choose_input", stop)
    resume(tmp_path / "run", lambda _: None)
    one, other = (tmp_path / run / "model.safetensors" for run in ("run", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_nothing_is_chosen_of_few_pictures_or_by_random_features(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_choice, "choose_input", None)  # would raise
    random = replace(config, backbone=replace(config.backbone, weights=None, pretrained=False))
    assert ran(random, tmp_path / "random")[0]["crop_mode"] == "center"
    monkeypatch.setattr(input_choice, "LEAST_PICTURES", 33)
    assert ran(config, tmp_path / "few")[0]["crop_mode"] == "center"


def test_mirroring_is_judged_like_framing(config: Config, tmp_path: Path) -> None:
    fixed = replace(config.backbone, crop="squash", image_size=32)
    auto = replace(config, backbone=fixed, solve=Solve(mirror="auto"))
    _, told = ran(auto, tmp_path / "auto")
    (line,) = [text for text in told if "by leave-one-out accuracy" in text]
    assert re.search(r"squashed to 32 px [\d.]+% of \d+, squashed to 32 px, mirrored [\d.]+%", line)
    taken = config_of(open_run(tmp_path / "auto")).solve.mirror
    assert open_run(tmp_path / "auto").read_description()["mirror"] == (taken == "on")
    _, told = ran(replace(auto, solve=Solve(mirror=taken)), tmp_path / "fixed")
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("auto", "fixed")]
    assert models[0] == models[1]
    assert not any("by leave-one-out accuracy" in text for text in told)


@pytest.mark.parametrize(("gain", "mirror"), [(2.0, "on"), (0.5, "off")])
def test_mirroring_is_taken_where_it_is_clearly_better(
    gain: float, mirror: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_choice, "gain_of", lambda rival, best: (gain, 1.0))
    fixed = replace(config.backbone, crop="squash", image_size=32)
    ran(replace(config, backbone=fixed, solve=Solve(mirror="auto")), tmp_path / "run")
    assert config_of(open_run(tmp_path / "run")).solve.mirror == mirror
    assert open_run(tmp_path / "run").read_description()["mirror"] == (mirror == "on")
