"""The features that a run keeps: from its caches as from the pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.finetuning import final_validation as validation
from transferkit.finetuning.final_validation import features_at, read_features
from transferkit.finetuning.preparation import prepare
from transferkit.recipes.reading import load_config
from transferkit.runs.folder import RunFolder
from transferkit.training.cache_choice import choose_base
from transferkit.training.cached_features import cached_features
from transferkit.training.material import spread_over_classes
from transferkit.training.parts import Parts
from transferkit.training.run import Run, make_run
from transferkit.training.sources import open_source

OPTIONS = {
    "backbone.name": "test_efficientnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "augment.views": 2,
    "stages": "1:1, 2:1, 3:1",
}


def filled(pictures: Path, root: Path, dtype: str) -> Run:
    """A run whose stages have filled their caches, and have let go of them."""
    own = {"data.path": str(pictures), "cache.dir": str(root), "cache.dtype": dtype}
    config = load_config(None, (), OPTIONS | own)
    parts = prepare(config, lambda _: None)
    head, *others = parts.plan.stages
    # no recipe trains a head alone on random blocks, but such a stage caches features
    head = replace(head, multipliers=(0.0,) * len(parts.chain.groups) + (1.0,))
    parts = replace(parts, plan=replace(parts.plan, stages=(head, *others)))
    run = make_run(parts, RunFolder(root / "run"))
    run.state.base, _ = choose_base(parts, parts.plan.stages)
    for stage in parts.plan.stages:
        for _ in open_source(parts, stage, run.state.base):
            pass
    parts.handles.close()
    return run


def lower_than(parts: Parts, stage: int) -> torch.nn.Parameter:
    """Return a parameter that no stage up to this one of the plan trains."""
    boundary = parts.plan.stages[stage].boundary
    named = parts.classifier.named_parameters()
    return [p for name, p in named if parts.column_of(name) < boundary][-1]


def add_a_bit(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter += 0.05


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float16", 3e-3)])
def test_cached_features_are_those_of_the_pictures(
    pictures: Path, tmp_path: Path, dtype: str, rtol: float
) -> None:
    run = filled(pictures, tmp_path, dtype)
    material, parts = run.material, run.parts
    positions = np.concatenate([material.val[::-1], material.train[1::2]])
    for changed_above in (None, 0, 1):  # what a longer and longer plan has trained
        if changed_above is not None:
            add_a_bit(lower_than(parts, changed_above))
        expected = read_features(parts, positions)
        found = cached_features(parts, run.stages, run.state.base, positions)
        assert found is not None
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * scale)
        spread = expected.std(dim=0).max()
        assert spread > 20 * rtol * scale or dtype == "float16"  # pictures are told apart


def test_weights_changed_below_every_cache_are_seen(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = filled(pictures, tmp_path, "float32")
    positions = run.material.val
    monkeypatch.setattr(validation, "read_features", lambda *_: None)
    assert features_at(run, positions) is not None
    folders = sorted(tmp_path.iterdir())
    add_a_bit(lower_than(run.parts, 2))
    assert features_at(run, positions) is None
    assert sorted(tmp_path.iterdir()) == folders  # nothing was made in looking for it


def test_without_a_cache_the_pictures_are_read(pictures: Path, tmp_path: Path) -> None:
    run = filled(pictures, tmp_path, "float32")
    parts, given = run.parts, (run.stages, run.state.base, run.material.val)
    off = replace(parts, settings=replace(parts.settings, enabled=False))
    assert cached_features(off, *given) is None
    for folder in tmp_path.iterdir():
        (folder / "state.json").unlink()
    assert cached_features(parts, *given) is None


def test_references_are_spread_over_the_classes() -> None:
    labels = np.array([0, 1] * 3000)
    chosen = spread_over_classes(labels, np.arange(6000), 2000)
    assert len(chosen) == 2000
    assert np.bincount(labels[chosen]).tolist() == [1000, 1000]
