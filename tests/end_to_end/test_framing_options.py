"""--crop: kept in the run, and used again by whatever reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit.errors import UserError
from transferkit.inference.predict import load_run
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import open_run

Cli = Callable[..., Any]
MLP = ("--backbone", "mlp", "--image-size", 16, "--backbone-width", 8)
QUICK = ("--stages", "all:2@1e-2", "--engine", "torch", "--augment", "light", "--views", 1)


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory, draw_strips: Callable[..., Path]) -> Path:
    """Two classes of 96 × 16 pixels that differ at the left end alone."""
    return draw_strips(tmp_path_factory.mktemp("strips"), (96, 16), 24, (8, 12))


def test_every_later_command_frames_pictures_as_the_run_did(strips: Path, cli: Cli) -> None:
    losses = {}
    for crop, mode in (("center", "center"), ("squash", "squash"), ("pad", "border")):
        result = cli("finetune", strips, *MLP, *QUICK, "--crop", crop, "--out", crop, "--json")
        assert result.code == 0, result.err
        assert ("--crop squash or --crop pad keep all" in result.err) == (crop == "center")
        losses[crop] = result.json["metrics"]["log_loss"]
        kept = json.loads(Path(crop, "model.json").read_text())["preprocessing"]
        assert (kept["crop_mode"], kept["crop_pct"]) == (mode, 1.0)
        assert load_run(open_run(Path(crop))).maker.preprocessing.to_dict() == kept | {
            "mean": tuple(kept["mean"]),
            "std": tuple(kept["std"]),
        }
        again = cli("evaluate", crop, strips, "--split", "val", "--json").json
        assert again["log_loss"] == pytest.approx(losses[crop], abs=1e-3)  # caches are float16
        assert cli("export", crop, "--data", strips, "-o", "m.onnx").code == 0
        rows = [
            cli("predict", m, strips / "val", "--json").json["predictions"]
            for m in (crop, "m.onnx")
        ]
        first, second = ([row["probability"] for row in found] for found in rows)
        assert second == pytest.approx(first, abs=1e-4)
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_who_starts_from_a_run_frames_as_it_did_unless_told(strips: Path, cli: Cli) -> None:
    def seen(run: str) -> tuple[str, float]:
        known = json.loads(Path(run, "model.json").read_text())["preprocessing"]
        return known["crop_mode"], known["crop_pct"]

    first = cli("finetune", strips, *MLP, *QUICK, "--crop-share", 0.75, "--out", "first")
    assert first.code == 0, first.err
    assert "pictures: centre crop of 16 px (crop share 0.75)" in first.out
    assert seen("first") == ("center", 0.75)
    for name, more, expected in (
        ("same", (), ("center", 0.75)),
        ("whole", ("--crop", "pad"), ("border", 1.0)),
        ("share", ("--crop-share", 0.9), ("center", 0.9)),
    ):
        found = cli("finetune", strips, "--from", "first", *QUICK, *more, "--out", name)
        assert found.code == 0, found.err
        assert seen(name) == expected


def test_plan_pretrain_and_inspect_tell_the_framing(strips: Path, cli: Cli) -> None:
    planned = cli("plan", strips, *MLP, *QUICK, "--crop", "squash")
    assert "pictures: squashed to 16 px" in planned.out + planned.err
    learning = ("--method", "rotation", "--epochs", 1, "--crop", "pad", "--out", "learned")
    learned = cli("pretrain", strips, *MLP, *learning)
    assert learned.code == 0, learned.err
    assert "mlp, padded to 16 px" in learned.out
    assert "keep all" not in learned.out
    found = cli("inspect", strips, "-o", "found.json")
    (text,) = (t for t in json.loads(Path("found.json").read_text())["warnings"] if "crop" in t)
    assert text.endswith("(median 6:1); finetune --crop squash or finetune --crop pad keep all")
    assert found.code == 0


def test_a_share_of_a_whole_picture_is_refused() -> None:
    for crop in ("squash", "pad"):
        with pytest.raises(
            UserError, match="crop_share has no effect with backbone.crop = " + crop
        ):
            load_config({"backbone": {"crop": crop, "crop_share": 0.9}})
