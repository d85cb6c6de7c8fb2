"""Suspects of a data set, and the pictures that speak for either of their labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.closed_form.suspects import rank
from transferkit.data.index import DatasetIndex
from transferkit.finetuning.evidence import Evidence, evidence_of, out_of_sample
from transferkit.finetuning.wrong_labels import find_suspects, nearest

COUNT, WRONG = 90, (4, 40, 75)
NAMES = ("a", "b", "c")


def evidence(groups: np.ndarray | None = None) -> Evidence:
    """Ninety pictures of three classes that four of eight features tell; `WRONG` are mislabelled.

    Columns are of very different sizes, and the evidence is of every second picture of the index.
    """
    generator = torch.Generator().manual_seed(0)
    truth = np.arange(COUNT) % 3
    features = torch.randn(COUNT, 8, generator=generator)
    features[:, :3] += 5 * torch.nn.functional.one_hot(torch.from_numpy(truth), 3)
    features *= torch.tensor([1, 50, 0.1, 1, 300, 1, 1, 7])
    labels = truth.copy()
    labels[list(WRONG)] = (labels[list(WRONG)] + 1) % 3
    index = DatasetIndex(
        root=Path("/data"),
        classes=NAMES,
        paths=tuple(f"{n}.png" for n in range(2 * COUNT)),
        labels=np.repeat(labels, 2),
        splits=np.array(["train", "val"] * COUNT),
        digests=tuple(map(str, range(2 * COUNT))),
        sizes=np.full((2 * COUNT, 2), 9),
        dhashes=np.zeros(2 * COUNT, np.uint64),
        unreadable=(),
        warnings=(),
        groups=None if groups is None else np.repeat(groups, 2),
    )
    return evidence_of(index, np.arange(0, 2 * COUNT, 2), features, (3, 5))


def test_suspects_are_those_whose_label_was_changed() -> None:
    given = evidence()
    found = find_suspects(given, None)
    assert {each.position for each in found.suspects} == {2 * row for row in WRONG}
    for each in found.suspects:
        row = each.position // 2
        assert (each.label, each.proposed) == (NAMES[(row + 1) % 3], NAMES[row % 3])
        assert each.sure > 0.5 > each.given
    assert found.pictures == COUNT
    assert found.estimate.number == pytest.approx(3, abs=1)
    assert [row["path"] for row in found.rows()] == [f"{e.position}.png" for e in found.suspects]
    ranked = rank(out_of_sample(given), given.labels).order[:20]
    twenty = find_suspects(given, 20).suspects
    assert [each.position // 2 for each in twenty] == ranked.tolist()


def test_what_somebody_has_looked_at_is_no_suspect() -> None:
    first = 2 * WRONG[0]
    found = find_suspects(evidence(), None, {f"{first}.png"})
    assert {each.position for each in found.suspects} == {2 * row for row in WRONG[1:]}
    assert found.pictures == COUNT - 1
    assert found.estimate.number == pytest.approx(2, abs=1)
    none = find_suspects(evidence(), None, {f"{n}.png" for n in range(2 * COUNT)})
    assert (none.pictures, none.suspects, none.estimate.number) == (0, (), 0.0)


@pytest.mark.parametrize("groups", [None, np.arange(COUNT) % 9])
def test_neighbours_are_the_nearest_by_scaled_features(groups: np.ndarray | None) -> None:
    given = evidence(groups)
    ranking = rank(out_of_sample(given), given.labels)
    rows = torch.tensor([WRONG[0], 20, 50])
    values = given.features.double()
    scaled = (values - values.mean(0)) / values.std(0, unbiased=False)
    scaled /= torch.tensor([3.0] * 3 + [5.0] * 5).double().sqrt()
    alone = np.arange(COUNT) if groups is None else groups
    for label in range(3):
        found = nearest(given, ranking, rows, torch.full((3,), label))
        for row, near in zip(rows.tolist(), found, strict=True):
            allowed = [
                n
                for n in range(COUNT)
                if given.labels[n] == label and alone[n] != alone[row] and n not in WRONG
            ]
            allowed.sort(key=lambda n: float((scaled[n] - scaled[row]).norm()))
            assert near == allowed[:3]


def test_a_class_of_suspects_alone_has_no_neighbours() -> None:
    given = evidence()
    ranking = rank(out_of_sample(given), given.labels)
    doubted = replace(ranking, unlikely=given.labels == 1)
    found = nearest(given, doubted, torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert found == [[], []]
