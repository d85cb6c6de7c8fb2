from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.data.index import DatasetIndex
from transferkit.finetuning.evidence import Evidence
from transferkit.finetuning.outlook import grouped_accuracies, outlook_of


def evidence(moved: float = 0.0, test: float = 0.0, count: int = 150) -> Evidence:
    """Two classes in three splits of which validation and test may be moved."""
    generator = torch.Generator().manual_seed(0)
    splits = np.array([("train", "train", "val", "train", "test")[n % 5] for n in range(count)])
    labels = torch.arange(count) // 5 % 2
    features = torch.randn(count, 12, generator=generator)
    features[:, 0] += 2 * labels
    features[splits == "val", 1] += moved
    features[splits == "test", 1] += test
    index = DatasetIndex(
        root=Path("/data"),
        classes=("a", "b"),
        paths=tuple(f"{n}.png" for n in range(count)),
        labels=labels.numpy(),
        splits=splits,
        digests=("",) * count,
        sizes=np.ones((count, 2), dtype=np.int64),
        dhashes=np.zeros(count, dtype=np.uint64),
        unreadable=(),
        warnings=(),
    )
    return Evidence(index, np.arange(count), features, (12,), labels)


def test_training_and_validation_are_looked_at_and_test_is_not() -> None:
    found = outlook_of(evidence())
    assert found.curve is not None
    assert found.shift is not None
    assert found.curve.all_pictures == 90
    assert found.shift.pictures == (90, 30)
    assert found.names == tuple(f"{n}.png" for n in range(2, 150, 5))
    assert found.warning == ""
    assert outlook_of(evidence(test=9.0)) == found


def test_a_moved_validation_is_told_with_its_pictures() -> None:
    found = outlook_of(evidence(moved=3.0))
    plain = found.to_dict()
    assert found.warning.startswith("validation pictures look different from the training ones")
    assert plain["shift"]["warning"] == found.warning
    assert plain["shift"]["differs"] is True
    assert all(int(name.removesuffix(".png")) % 5 == 2 for name in plain["shift"]["most"])
    assert plain["shift"]["most"][0] in found.warning


def test_without_validation_there_is_a_curve_and_no_comparison() -> None:
    whole = evidence()
    whole.index.splits[:] = "train"
    found = outlook_of(whole)
    assert found.shift is None
    assert found.curve is not None
    assert found.curve.judged_on == "all"
    assert found.to_dict()["shift"] is None


@pytest.mark.parametrize("count", [20, 60])
def test_groups_are_handed_on(count: int) -> None:
    whole = evidence(count=150)
    groups = torch.arange(150) // 5 % count
    grouped = Evidence(whole.index, whole.positions, whole.features, (12,), whole.labels, groups)
    found, alone = outlook_of(grouped), outlook_of(whole)
    assert found.curve is not None
    assert alone.curve is not None
    assert found.curve.errors != alone.curve.errors


def test_what_bursts_hide_is_said_beside_the_way_to_group_them() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = evidence()
    scene = torch.arange(150) // 5
    scenes = torch.randn(30, 12, generator=generator)  # that tell nothing of the class
    features = scenes[scene] + 0.05 * torch.randn(150, 12, generator=generator)
    paths = tuple(f"shot{n // 5:02d}_{n % 5}.png" for n in range(150))
    digests = tuple(map(str, range(150)))
    bursts = replace(
        whole, index=replace(whole.index, paths=paths, digests=digests), features=features
    )
    by_name, similar = grouped_accuracies(bursts)
    assert (by_name.by, similar.by) == (r"^(.+)[-_ ]", "similar")
    assert by_name.by_picture == similar.by_picture > 0.7
    assert by_name.by_group < by_name.by_picture - 0.1
    assert "by picture" in by_name.text
    assert "--group-by '^(.+)[-_ ]'" in by_name.text
    assert grouped_accuracies(replace(bursts, groups=scene)) == ()
    assert grouped_accuracies(replace(whole, index=replace(whole.index, digests=digests))) == ()
