"""The sample that is examined after an epoch of pretraining."""

import numpy as np
import pytest

from transferkit.pretraining.evaluator import evenly_spaced, sample_size


@pytest.mark.parametrize(
    ("training", "sampled"), [(10, 32), (256, 32), (320, 40), (1000, 125), (9000, 256)]
)
def test_the_sample_stays_a_small_part_of_an_epoch(training: int, sampled: int) -> None:
    assert sample_size(training) == sampled


def test_the_sample_is_spread_over_all_pictures() -> None:
    assert evenly_spaced(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert evenly_spaced(np.arange(3), 5).tolist() == [0, 1, 2]
