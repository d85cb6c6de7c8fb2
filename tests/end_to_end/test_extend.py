"""`extend` and `merge`: as if all pictures had been there from the start."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transferkit.runs.folder import open_run
from transferkit.training import material

Cli = Callable[..., Any]
OPTIONS = ("--stages", "solve", "--backbone", "cnn", "--backbone-width", 8, "--image-size", 32)
OPTIONS += ("--backbone-depth", 2, "--engine", "torch")


@pytest.fixture
def halves(pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The pictures in two folders: every other one of two classes; the rest, with a third class."""
    folders = tmp_path / "one", tmp_path / "two"
    for file in sorted(pictures.rglob("*.png")):
        place = file.relative_to(pictures)
        last = sorted(path.name for path in pictures.glob("train/*"))[-1]
        folder = folders[1 if place.parts[1] == last else int(file.stem) % 2]
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / place)
    return folders


def head_of(run: Path) -> torch.Tensor:
    """The head's weight and bias (K, D + 1) in the order of the classes' names."""
    tensors = load_file(run / "model.safetensors")
    weight, bias = tensors["head.1.weight"], tensors["head.1.bias"]
    order = np.argsort(open_run(run).read_description()["classes"])
    return torch.cat([weight, bias[:, None]], 1)[torch.from_numpy(order)]


@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
@pytest.mark.parametrize("balance", ["none", "loss"])
def test_extended_equals_trained_on_all(
    summed: bool,
    balance: str,
    halves: tuple[Path, Path],
    pictures: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = (*OPTIONS, "--balance", balance, *(("--penalty", 0.1) if summed else ()))
    if summed:  # few are kept by their features
        options += ("--depths", 2)
        monkeypatch.setattr(material, "MOST_JUDGED", 4)
    for data, out in ((pictures, "all"), (halves[0], "first")):
        result = cli("finetune", data, *options, "--out", out)
        assert result.code == 0, result.err
    result = cli("extend", "first", halves[1], "--out", "more", "--json")
    if summed and balance == "loss":
        assert result.code == 2
        assert "class weights" in result.out
        return
    assert result.code == 0, result.err
    more, whole = head_of(Path("more")), head_of(Path("all"))
    if summed:  # the temperature is fitted to other pictures
        more, whole = more / more.norm(), whole / whole.norm()
    assert torch.allclose(more, whole, atol=1e-5, rtol=1e-4)
    assert result.json["val_pictures"] == len([*pictures.glob("val/*/*")])
    again = cli("finetune", "--resume", "more", "--json")
    assert again.code == 0, again.err
    rows = cli("predict", "more", pictures / "val", "--json").json["predictions"]
    assert len(rows) == len([*pictures.glob("val/*/*")])


def test_merged_equals_trained_on_all(halves: tuple[Path, Path], pictures: Path, cli: Cli) -> None:
    for data, out in ((pictures, "all"), (halves[0], "first"), (halves[1], "second")):
        result = cli("finetune", data, *OPTIONS, "--out", out)
        assert result.code == 0, result.err
    result = cli("merge", "first", "second", "--out", "both")
    assert result.code == 0, result.err
    assert torch.allclose(head_of(Path("both")), head_of(Path("all")), atol=1e-5, rtol=1e-4)
    doubled = cli("extend", "both", pictures, "--out", "again")
    assert doubled.code == 0, doubled.err
    assert "are there already, and count once" in doubled.out
    assert torch.allclose(head_of(Path("again")), head_of(Path("all")), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_gone_on_from_is_told(halves: tuple[Path, Path], cli: Cli) -> None:
    stages = cli("finetune", halves[0], *OPTIONS, "--stages", "all:1", "--out", "trained")
    assert stages.code == 0, stages.err
    refused = cli("extend", "trained", halves[1])
    assert refused.code == 1
    assert "keeps no solve" in refused.err
    assert cli("extend", "trained").code == 2
    assert cli("merge", "trained").code == 2
    for name, options in (("a", ()), ("b", ("--backbone-width", 4))):
        assert cli("finetune", halves[0], *OPTIONS, *options, "--out", name).code == 0
    other = cli("merge", "a", "b")
    assert "see pictures differently" in other.err
    on = cli("finetune", halves[0], *OPTIONS, "--stages", "solve,all:1", "--out", "on")
    assert on.code == 0, on.err
    warned = cli("extend", "on", halves[1], "--out", "warned")
    assert warned.code == 0, warned.err
    assert "went on after its solve (all)" in warned.out
