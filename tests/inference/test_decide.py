"""Thresholds that validation pictures choose, and what is decided where none is good enough."""

import numpy as np
import pytest

from transferkit.config import Predict
from transferkit.inference import decide
from transferkit.inference.decide import MEASURES, fit_rule
from transferkit.inference.uncertainty import uncertainty_of

PROBABILITIES = np.array([[0.99, 0.01], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])[:, None]


@pytest.mark.parametrize(
    ("labels", "abstained"),
    [([0, 0, 1, 0], [False, False, False, True]), ([1, 0, 1, 0], [True] * 4)],
)
def test_where_no_threshold_reaches_the_target_every_picture_is_abstained_from(
    labels: list[int], abstained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (PROBABILITIES, np.array(labels))
    monkeypatch.setattr(decide, "validation_samples", lambda members, options: found)
    rule = fit_rule([], Predict(target_accuracy=1.0))
    values = MEASURES[rule.by](uncertainty_of(PROBABILITIES))
    assert rule.threshold is not None
    assert (values > rule.threshold).tolist() == abstained
    assert rule.note.startswith("abstains from every picture: no threshold") == all(abstained)
