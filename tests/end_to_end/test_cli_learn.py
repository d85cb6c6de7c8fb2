"""What more pictures would bring, and pictures that look different, in whole commands."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transferkit.config import BackboneOptions, Config
from transferkit.finetuning.pictures import read_evidence
from transferkit.verbs import learn

Cli = Callable[..., Any]
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", 32)


def write(root: Path, counts: dict[str, int], dark: int = 0) -> Path:
    """Write pictures of two classes, noise with a bright top or left half."""
    rng = np.random.default_rng(zlib.crc32(root.name.encode()))  # the same wherever it lies
    for split, count in counts.items():
        for k, name in enumerate(("left", "top")):
            for number in range(count):
                pixels = rng.integers(60, 200, (32, 32, 3), dtype=np.uint8)
                half = (slice(None), slice(0, 16)) if k == 0 else (slice(0, 16),)
                pixels[half] = np.minimum(pixels[half] + 25, 255)
                file = root / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.maximum(pixels.astype(int) - dark, 0).astype(np.uint8)).save(
                    file
                )
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("learn") / "data", {"train": 40, "val": 20})


@pytest.fixture
def solved(data: Path, cli: Cli) -> Path:
    result = cli("finetune", data, *TINY, "--stages", "solve", "--out", "run", "--json")
    assert result.code == 0, result.err
    return Path("run")


def test_a_run_of_solves_alone_stays_quick(solved: Path) -> None:
    found = json.loads((solved / "learning.json").read_text())
    assert found["learning_curve"] is None
    assert found["shift"]["pictures"] == [80, 40]


def test_a_run_tells_what_more_pictures_would_bring(data: Path, cli: Cli) -> None:
    plan = ("--stages", "solve, 1:1", "--views", 0, "--out", "run", "--json")
    result = cli("finetune", data, *TINY, *plan)
    assert result.code == 0, result.err
    solved = Path("run")
    found = json.loads((solved / "learning.json").read_text())
    curve = found["learning_curve"]
    assert curve["pictures"][-1] == curve["all_pictures"] == 80
    assert set(curve["classes"]) == {"left", "top"}
    assert found["shift"]["pictures"] == [80, 40]
    page = (solved / "report.html").read_text()
    assert 'id="more"' in page
    sentence = curve["sentences"][0]
    assert sentence[1:] in page  # it begins with a capital there
    assert sentence.split(" (")[0] in (solved / "log.txt").read_text()
    (solved / "learning.json").unlink()
    assert cli("report", solved).code == 0
    assert 'id="more"' not in (solved / "report.html").read_text()


def test_predict_tells_of_pictures_that_look_different(
    solved: Path, tmp_path: Path, cli: Cli
) -> None:
    dark = write(tmp_path / "dark", {"new": 20}, dark=90)
    found = cli("predict", solved, dark, "--json")
    assert "these pictures look different from those the model was validated on" in found.err
    shift = found.json["shift"]
    assert shift["differs"] is True
    assert shift["pictures"] == [40, 40]
    assert shift["auc"] > 0.95
    assert set(shift["most"]) <= {str(file) for file in dark.rglob("*.png")}


def test_predict_is_silent_of_pictures_like_those_of_validation(
    solved: Path, tmp_path: Path, cli: Cli
) -> None:
    alike = write(tmp_path / "like them", {"new": 20})
    found = cli("predict", solved, alike, "--json")
    assert "look different" not in found.err
    assert found.json["shift"]["differs"] is False
    few = cli("predict", solved, alike / "new" / "top", "--json")
    assert "shift" not in few.json


def test_the_pictures_that_a_solve_would_learn_most_from(
    solved: Path, tmp_path: Path, cli: Cli
) -> None:
    more = write(tmp_path / "more", {"new": 20})
    found = cli("predict", solved, more, "--select", 5, "--by", "solve", "--json")
    rows = found.json["predictions"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["path"] for row in rows}) == 5
    (solved / "reference.safetensors").unlink()
    refused = cli("predict", solved, more, "--select", 5, "--by", "solve")
    assert refused.code == 1
    assert "holds no features of its training pictures" in refused.err


def test_inspect_says_what_more_pictures_would_bring(
    data: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(config: Config, show: Any) -> Any:
        assert config.data.path == data
        network = BackboneOptions(name="test_efficientnet", pretrained=False, image_size=32)
        return read_evidence(replace(config, backbone=network), show)

    monkeypatch.setattr(learn, "read_evidence", tiny)
    found = cli("inspect", data, "--learn", "--json")
    assert found.code == 0, found.err
    printed = found.json
    written = Path(printed.pop("output"))
    assert json.loads(written.read_text()) == printed
    assert printed["learning_curve"]["all_pictures"] == 80
    assert printed["shift"]["pictures"] == [80, 40]
    assert printed["pictures"] == 120
    assert set(printed["learning_curve"]["classes"]) == {"left", "top"}
    with Image.open("learning-curve.png") as plot:
        assert plot.size[0] > 500
    Path("there").mkdir()
    out = cli("inspect", data, "--learn", "-o", "there/mine.json").out
    assert "with 160 about" in " ".join(out.split())
    assert "do not look different" in " ".join(out.split())
    assert Path("there/learning-curve.png").is_file()


def test_inspect_does_not_group_by_features(pictures: Path, cli: Cli) -> None:
    refused = cli("inspect", pictures, "--group-by", "similar")
    assert refused.code == 2
    assert "needs the features" in refused.err
    assert "inspect --learn" in refused.err
