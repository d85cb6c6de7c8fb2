"""What is looked at after an epoch of pretraining."""

import numpy as np
import pytest

from transferkit.pretraining.watch import chosen, most_watched


@pytest.mark.parametrize(
    ("learned", "looked_at"), [(10, 32), (256, 32), (320, 40), (1000, 125), (9000, 256)]
)
def test_looking_stays_a_small_part_of_an_epoch(learned: int, looked_at: int) -> None:
    assert most_watched(learned) == looked_at


def test_chosen_pictures_are_spread_over_all() -> None:
    assert chosen(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert chosen(np.arange(3), 5).tolist() == [0, 1, 2]
