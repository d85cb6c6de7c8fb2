"""Sums over pictures: parts add up to the whole, and files give back what was written."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from transferkit.closed_form.ridge import decompose_sums
from transferkit.closed_form.sums import Sums, one_hot, sum_up
from transferkit.files.tensor_files import from_safetensors, to_safetensors


@pytest.fixture
def features() -> Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2


LABELS = torch.arange(50) % 4


def test_what_is_summed(features: Tensor) -> None:
    weights = torch.linspace(0.5, 2, 50)
    found = sum_up(features, one_hot(LABELS, 4), weights)
    x, y, w = features.double(), one_hot(LABELS, 4).double(), weights.double()
    assert found.pictures == 50
    assert torch.allclose(found.weight, w.sum())
    assert torch.allclose(found.features, (x * w[:, None]).sum(0))
    assert torch.allclose(found.products, x.T @ torch.diag(w) @ x)
    assert torch.allclose(found.targets, (y * w[:, None]).sum(0))
    assert torch.allclose(found.crossed, x.T @ torch.diag(w) @ y)


def test_parts_add_up_to_the_whole(
    features: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    targets = one_hot(LABELS, 4)
    whole = sum_up(features, targets)
    monkeypatch.setattr("transferkit.closed_form.sums.ROWS", 7)
    first, second = sum_up(features[:20], targets[:20]), sum_up(features[20:], targets[20:])
    (tmp_path / "sums.safetensors").write_bytes(to_safetensors(first.tensors()))
    kept = Sums.from_tensors(from_safetensors(tmp_path / "sums.safetensors"))
    for name, value in (kept + second).tensors().items():
        assert torch.allclose(value, whole.tensors()[name], rtol=1e-12, atol=0), name
    solutions = [decompose_sums(sums, (6,)).linear(0.01) for sums in (kept + second, whole)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*solutions, strict=True))


def test_more_classes_later(features: Tensor) -> None:
    """Classes 0 and 1 first; 2 comes before, 3 after them in the new order."""
    whole = sum_up(features, one_hot(LABELS, 4))
    place = torch.tensor([1, 2, 0, 3])  # of labels 0..3 among all classes
    early = LABELS < 2
    first = sum_up(features[early], one_hot(LABELS[early], 2)).of_classes([1, 2], 4)
    second = sum_up(features[~early], one_hot(place[LABELS[~early]], 4))
    for name, value in (first + second).of_classes([2, 0, 1, 3], 4).tensors().items():
        assert torch.allclose(value, whole.tensors()[name]), name


def test_some_columns(features: Tensor) -> None:
    targets = one_hot(LABELS, 4)
    found = sum_up(features, targets).of_columns(slice(2, 6))
    for name, value in sum_up(features[:, 2:], targets).tensors().items():
        assert torch.allclose(found.tensors()[name], value), name


@pytest.mark.parametrize("name", ["products", "crossed", "weight"])
def test_sums_that_do_not_fit_together_are_refused(features: Tensor, name: str) -> None:
    sums = sum_up(features, one_hot(LABELS, 4))
    spoiled = replace(sums, **{name: torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=name):
        Sums.from_tensors(spoiled.tensors())
