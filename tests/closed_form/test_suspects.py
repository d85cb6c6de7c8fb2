"""Labels that were changed are ranked first, and counted."""

import math

import pytest
import torch
from torch import Tensor

from transferkit.closed_form.suspects import confident_joint, estimate, rank


def drawn(count: int, num_classes: int, sharpness: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return probabilities (N, K) and labels (N,) that are drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, num_classes, generator=generator).double()
    probabilities = logits.softmax(1)
    return probabilities, torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def changed(labels: Tensor, number: int, num_classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return labels of which so many are others at random, and which."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randperm(len(labels), generator=generator)[:number]
    steps = torch.randint(1, num_classes, (number,), generator=generator)
    result = labels.clone()
    result[which] = (labels[which] + steps) % num_classes
    return result, which


def test_the_ranking_is_by_the_given_class_and_proposes_the_best_other() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.05, 0.05, 0.9], [0, 0, 1.0]])
    found = rank(probabilities, torch.tensor([0, 1, 2, 0]))
    assert found.order.tolist() == [3, 1, 0, 2]
    assert found.proposed.tolist() == [1, 2, 0, 2]
    assert found.sure.tolist() == pytest.approx([0.2, 0.6, 0.05, 1.0])
    assert found.unlikely.tolist() == [False, True, False, True]
    assert found.doubts[:3].tolist() == pytest.approx([-math.log(p) for p in (0.7, 0.3, 0.9)])
    assert bool(found.doubts.isfinite().all())


@pytest.mark.parametrize(("num_classes", "sharpness"), [(2, 6.0), (5, 4.0), (30, 6.0)])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.15])
def test_as_many_as_were_changed_are_estimated(
    num_classes: int, sharpness: float, share: float
) -> None:
    probabilities, labels = drawn(2000, num_classes, sharpness)
    number = round(share * 2000)
    labels, _ = changed(labels, number, num_classes)
    found = estimate(probabilities, labels)
    assert abs(found.number - number) < 3 * found.error
    assert found.number == pytest.approx(number, rel=0.3)
    assert 0 < found.error < 0.3 * number


def test_doubt_is_not_taken_for_wrong_labels() -> None:
    """A third of the labels are not the most probable class, and none was changed."""
    probabilities, labels = drawn(2000, 5, 1.5)
    assert float((probabilities.argmax(1) != labels).double().mean()) > 0.3
    found = estimate(probabilities, labels)
    assert found.number <= max(10.0, 2 * found.error)
    joint = confident_joint(probabilities, labels)
    assert float(joint.sum() - joint.trace()) > 200  # what confident learning would say


def test_a_temperature_that_wrong_labels_have_raised_does_no_harm() -> None:
    probabilities, labels = drawn(2000, 5, 4.0)
    labels, _ = changed(labels, 100, 5)
    flattened = (probabilities.log() / 2).softmax(1)
    number = estimate(probabilities, labels).number
    assert estimate(flattened, labels).number == pytest.approx(number, rel=1e-3)


def test_the_estimate_is_of_the_highest_likelihood() -> None:
    """Neither another share nor another temperature explains the labels better."""
    probabilities, labels = drawn(500, 4, 4.0)
    labels, _ = changed(labels, 40, 4)
    found = estimate(probabilities, labels).number / 500

    def likelihood(share: float, temperature: float) -> float:
        q = (probabilities.log() / temperature).softmax(1)
        mixed = (1 - share) * q + share * (1 - q) / 3
        return float(mixed.gather(1, labels[:, None]).log().sum())

    shares = [found + 0.002 * k for k in range(-10, 11)]
    best = {s: max(likelihood(s, 0.5 + 0.01 * t) for t in range(100)) for s in shares}
    assert max(best, key=lambda share: best[share]) == pytest.approx(found, abs=0.0021)


def test_pairs_of_classes_are_found() -> None:
    probabilities, labels = drawn(2000, 4, 6.0)
    which = (labels == 1).nonzero()[:60, 0]
    labels[which] = 3
    found = estimate(probabilities, labels)
    assert divmod(int(found.joint.argmax()), 4) == (3, 1)
    assert float(found.joint[3, 1]) == pytest.approx(60, rel=0.3)
    assert found.joint.diagonal().tolist() == [0.0] * 4
    assert float(found.joint.sum()) == pytest.approx(found.number)


def test_a_seed_gives_the_same_error() -> None:
    probabilities, labels = drawn(300, 3, 3.0)
    labels, _ = changed(labels, 20, 3)
    first, again, other = (estimate(probabilities, labels, seed) for seed in (0, 0, 1))
    assert (first.number, first.error) == (again.number, again.error)
    assert first.number == other.number
    assert first.error != other.error


def test_a_small_error_is_shown_as_one() -> None:
    probabilities = torch.eye(2).double().repeat(50, 1) * 0.98 + 0.01
    found = estimate(probabilities, torch.arange(100) % 2)
    assert (found.number, found.text) == (pytest.approx(0, abs=0.1), "0 ± 1")


def test_the_confident_joint_is_that_of_the_paper() -> None:
    """Worked by hand: thresholds 0.6 and 0.7; the picture at 0.65 for 1 reaches neither."""
    first = torch.tensor([0.9, 0.8, 0.1, 0.3, 0.2, 0.4])
    probabilities = torch.stack([first, 1 - first], 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # means of the own class: (0.9 + 0.8 + 0.1) / 3 = 0.6, (0.7 + 0.8 + 0.6) / 3 = 0.7
    counted = torch.tensor([[2.0, 1.0], [0.0, 2.0]])
    expected = counted * torch.tensor([[3 / 3], [3 / 2]])
    assert torch.allclose(confident_joint(probabilities, labels), expected.double())


def test_a_class_without_pictures_has_none_to_count() -> None:
    probabilities, labels = drawn(200, 3, 3.0)
    labels[labels == 2] = 0
    joint = confident_joint(probabilities, labels)
    assert joint[2].tolist() == [0.0] * 3
    assert joint[:, 2].tolist() == [0.0] * 3
    assert float(joint.sum()) == pytest.approx(200)
