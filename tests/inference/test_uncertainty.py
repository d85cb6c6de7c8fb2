import numpy as np
import pytest
from scipy.special import entr

from transferkit.inference.uncertainty import entropy, margin, uncertainty_of

A, B, C = (0.7, 0.2, 0.1), (0.1, 0.6, 0.3), (0.6, 0.3, 0.1)


def test_entropy_is_scipys():
    samples = np.random.default_rng(0).dirichlet(np.full(5, 0.05), size=(50, 3))  # (N, S, K)
    samples[0, 0] = np.eye(5)[2]
    np.testing.assert_allclose(entropy(samples), entr(samples).sum(axis=-1), rtol=1e-13)


def h(*p):
    return -sum(q * np.log(q) for q in p)


def test_measures_of_a_small_example_by_hand():
    # one picture, two samples, three classes; and one whose samples agree
    found = uncertainty_of(np.array([[A, B], [A, A]]))
    assert found.mean[0] == pytest.approx([0.4, 0.4, 0.2])
    assert found.std[0] == pytest.approx([0.3, 0.2, 0.1])
    total, expected = h(0.4, 0.4, 0.2), (h(*A) + h(*B)) / 2
    assert found.predictive_entropy == pytest.approx([total, h(*A)])
    assert found.expected_entropy == pytest.approx([expected, h(*A)])
    assert found.mutual_information == pytest.approx([total - expected, 0], abs=1e-12)
    assert found.variation_ratio.tolist() == [0.5, 0]
    assert found.margin == pytest.approx([0, 0.5])


def test_variation_ratio_counts_the_most_frequent_class():
    assert uncertainty_of(np.array([[A, B, C]])).variation_ratio == pytest.approx([1 / 3])


def test_bounds():
    even = np.full((1, 4), 0.25)
    assert entropy(even) == pytest.approx([np.log(4)])
    assert entropy(np.eye(4)[:1]) == pytest.approx([0])
    assert margin(np.eye(4)[:1]) == pytest.approx([1])
    assert margin(even) == pytest.approx([0])
    certain_but_split = uncertainty_of(np.eye(4)[None])  # four samples, each sure of another class
    assert certain_but_split.mutual_information == pytest.approx([np.log(4)])
    assert certain_but_split.expected_entropy == pytest.approx([0])
    assert certain_but_split.variation_ratio == pytest.approx([0.75])


def test_a_single_sample_has_no_spread():
    found = uncertainty_of(np.array([[A]]))
    assert found.std.max() == 0
    assert found.mutual_information == pytest.approx([0])
