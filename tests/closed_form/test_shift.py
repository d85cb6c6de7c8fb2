import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

from transferkit.closed_form import shift as module
from transferkit.closed_form.shift import Sample, compare_samples

CLASSES = ("a", "b")


def sample(rows: int, seed: int, shift: float = 0.0, columns: int = 12) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, columns, generator=generator)
    features[:, 0] += shift
    return Sample(features, torch.arange(rows) % 2)


@pytest.mark.parametrize("grouped", [False, True])
def test_figures_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    monkeypatch.setattr(module, "PENALTIES", (0.1,))
    first, second = sample(40, 1), sample(30, 2, 0.7)
    groups = np.concatenate([np.arange(40) // 2, 100 + np.arange(30) // 3])
    if grouped:
        first = Sample(first.features, first.labels, torch.from_numpy(groups[:40]))
        second = Sample(second.features, second.labels, torch.from_numpy(groups[40:]))
    found = compare_samples(first, second, [12], CLASSES)
    assert found is not None
    x = StandardScaler().fit_transform(torch.cat([first.features, second.features]).double())
    side = np.arange(70) >= 40
    y = np.where(side, 70 / 30, -70 / 40) / 2
    splits = LeaveOneGroupOut() if grouped else LeaveOneOut()
    # ours: the mean squared error plus the penalty, over 12 columns of one depth
    way = Ridge(alpha=0.1 * 70)
    given = groups if grouped else None
    scores = cross_val_predict(way, x / np.sqrt(12), y, cv=splits, groups=given)
    assert found.auc == pytest.approx(roc_auc_score(side, scores), abs=1e-12)
    assert found.most == tuple(np.argsort(-scores[40:])[:5])
    assert found.pictures == (40, 30)
    for k, name in enumerate(CLASSES):
        mine = torch.cat([first.labels, second.labels]).numpy() == k
        assert found.classes[name] == pytest.approx(roc_auc_score(side[mine], scores[mine]))


def test_pictures_of_one_kind_are_not_told_apart() -> None:
    pairs = ((sample(60, 2 * seed), sample(40, 2 * seed + 1)) for seed in range(100))
    found = [compare_samples(*pair, [12], CLASSES, seed) for seed, pair in enumerate(pairs)]
    values = np.array([each.p_value for each in found if each is not None])
    assert len(values) == 100
    assert sum(each.differs for each in found if each is not None) <= 5
    assert values.mean() == pytest.approx(0.5, abs=0.12)  # uniform
    assert (values <= 0.1).mean() == pytest.approx(0.1, abs=0.09)


def test_shifted_pictures_are_told_apart() -> None:
    for seed in range(10):
        found = compare_samples(sample(60, seed), sample(60, 50 + seed, 1.5), [12], CLASSES, seed)
        assert found is not None
        assert found.differs
        assert found.p_value == pytest.approx(1 / 200)


def test_the_class_and_the_pictures_that_differ_are_named() -> None:
    first, second = sample(100, 1), sample(100, 2)
    second.features[second.labels == 1, 3] += 3
    second.features[7, 3] += 9  # an odd row is of class b
    found = compare_samples(first, second, [12], CLASSES)
    assert found is not None
    assert list(found.classes) == ["b", "a"]
    assert found.classes["b"] > 0.9 > 0.7 > found.classes["a"]
    assert found.most[0] == 7
    text = found.text("these", "those", [f"{n}.png" for n in range(100)])
    assert "most of all `b`" in text
    assert "first 7.png, " in text


def test_groups_move_as_a_whole() -> None:
    """Six places of ten alike pictures each: three against three are no evidence."""
    flagged = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        places = torch.randn(8, 12, generator=generator).repeat_interleave(10, 0) * 3
        features = places + torch.randn(80, 12, generator=generator)
        groups, labels = torch.arange(80) // 10, torch.arange(40) % 2
        one, two = Sample(features[:40], labels), Sample(features[40:], labels)
        alone = compare_samples(one, two, [12], CLASSES)
        assert alone is not None
        assert alone.differs
        grouped = compare_samples(
            Sample(one.features, labels, groups[:40]),
            Sample(two.features, labels, groups[40:]),
            [12],
            CLASSES,
        )
        assert grouped is not None
        flagged += grouped.differs
    assert flagged == 0


def test_too_few_pictures_are_not_compared() -> None:
    assert compare_samples(sample(29, 1), sample(50, 2), [12], CLASSES) is None
    assert compare_samples(sample(50, 1), sample(29, 2), [12], CLASSES) is None


def test_of_many_pictures_some_are_compared() -> None:
    found = compare_samples(sample(600, 1), sample(40, 2), [12], CLASSES)
    assert found is not None
    assert found.pictures == (500, 40)
