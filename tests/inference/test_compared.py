from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from transferkit.closed_form import shift
from transferkit.inference import compared
from transferkit.inference.compared import Compared


def member(validation: dict[str, torch.Tensor] | None) -> Any:
    """What `Compared` reads of a member: a run with validation features of two classes."""
    folder = SimpleNamespace(path=Path("run"), load_validation=lambda: validation)
    return SimpleNamespace(
        folder=folder, loaded=SimpleNamespace(classes=("a", "b"), classifier=object())
    )


def features(count: int, seed: int, moved: float = 0.0) -> torch.Tensor:
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    rows[:, 2] += moved
    return rows


def filled(moved: float, count: int = 60) -> Compared:
    kept = {"features": features(50, 1).half(), "labels": torch.arange(50) % 2}
    found = Compared(member(kept))
    files = [Path(f"{n}.png") for n in range(count)]
    rows = features(count, 2, moved)
    for start in range(0, count, 7):
        part = slice(start, start + 7)
        found.add(files[part], np.arange(count)[part] % 2, rows[part])
    return found


def test_moved_pictures_are_told_and_others_are_not() -> None:
    warning, plain = filled(3.0).told()
    assert plain is not None
    assert plain["differs"] is True
    assert plain["pictures"] == (50, 60)
    assert warning == plain["warning"]
    assert plain["most"][0] in warning
    warning, plain = filled(0.0).told()
    assert warning == ""
    assert plain is not None
    assert plain["differs"] is False


def test_few_pictures_or_a_run_without_features_say_nothing() -> None:
    assert filled(3.0, 29).told() == ("", None)
    assert Compared(member(None)).told() == ("", None)
    whole = filled(3.0)
    assert Compared(member({"labels": torch.arange(50) % 2}), 0, 60, whole._kept).told() == (
        "",
        None,
    )


def test_of_many_pictures_a_random_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "MOST_COMPARED", 40)
    assert shift.MOST_COMPARED >= 40
    counts = np.zeros(200)
    for seed in range(60):
        found = Compared(member(None), seed)
        for start in range(0, 200, 50):
            numbers = np.arange(start, start + 50)
            rows = torch.from_numpy(numbers[:, None].astype(np.float32))
            found.add([Path(str(n)) for n in numbers], numbers % 2, rows)
        kept = [int(str(file)) for file, _, _ in found._kept]
        assert len(kept) == len(set(kept)) == 40
        assert all(
            k == n % 2 and float(row) == n for (_, k, row), n in zip(found._kept, kept, strict=True)
        )
        counts[kept] += 1
    quarters = counts.reshape(4, 50).sum(1) / counts.sum()
    np.testing.assert_allclose(quarters, 0.25, atol=0.03)
