"""Whole runs of a tiny network, each with options of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transferkit.recipes.reading import load_config
from transferkit.runs.folder import open_run
from transferkit.verbs import finetune as verb

Ran = Callable[..., Path]


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots and reports take longer than these runs; tests/end_to_end looks at them."""
    monkeypatch.setattr(verb, "draw", lambda *_: None)
    monkeypatch.setattr(verb, "write_report", lambda *_: None)


@pytest.fixture(scope="session")
def train_with(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Ran:
    """Train the top group for three short epochs, with other options; return the run folder."""
    root = tmp_path_factory.mktemp("variants")
    count = [0]

    def run(given: dict[str, Any]) -> Path:
        base = {
            "data.path": str(pictures),
            "backbone.name": "test_efficientnet",
            "backbone.image_size": 32,
            "augment.level": "none",
            "cache.dir": str(root / "cache"),
            "device.accelerator": "cpu",
            "device.engine": "torch",
            "training.batch_size": 6,
            "stages": "1:3@1e-2",
        }
        if given.get("backbone.name") not in ("mlp", "cnn") and "backbone.weights" not in given:
            base["backbone.pretrained"] = False
        count[0] += 1
        out = root / f"run{count[0]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verb, "draw", lambda *_: None)
            patch.setattr(verb, "write_report", lambda *_: None)
            verb.finetune(load_config(None, (), base | given), out, lambda _: None)
        return out

    return run


@pytest.fixture(scope="session")
def ran(train_with: Ran) -> Callable[..., list[dict[str, Any]]]:
    """Do as `train_with`, but return the run's rows of metrics without the clock."""

    def rows(given: dict[str, Any]) -> list[dict[str, Any]]:
        found = open_run(train_with(given)).read_metrics()
        return [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in found]

    return rows
