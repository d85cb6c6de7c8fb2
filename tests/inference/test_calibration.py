import numpy as np
import pytest
import torch
from scipy import special

from transferkit.inference.calibration import (
    LIMITS,
    calibrate,
    calibrate_samples,
    cross_fitted,
    fit_temperature,
    log_mean,
    log_softmax,
    quality,
    softmax,
)


def draw(count, temperature, seed=0, classes=5):
    """Logits whose probabilities at `temperature` are exactly those the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(count, classes))
    labels = [rng.choice(classes, p=row) for row in softmax(logits, temperature)]
    return logits, np.array(labels)


def test_log_probabilities_are_scipys_also_far_from_zero():
    logits = np.random.default_rng(0).normal(scale=300, size=(40, 2, 5))
    np.testing.assert_allclose(log_softmax(logits, 0.7), special.log_softmax(logits / 0.7, axis=-1))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(true):
    assert fit_temperature(*draw(20_000, true)) == pytest.approx(true, rel=0.04)


def test_it_is_where_torch_finds_the_lowest_loss():
    logits, labels = draw(3000, 2.0)
    grid = np.linspace(1.5, 2.5, 2001)
    scores, targets = torch.tensor(logits), torch.tensor(labels)
    losses = [torch.nn.functional.cross_entropy(scores / t, targets).item() for t in grid]
    # Platt's targets pull a little towards less certainty
    assert fit_temperature(logits, labels) == pytest.approx(grid[np.argmin(losses)], rel=0.01)


def test_few_right_pictures_do_not_make_certainty():
    logits = 4 * np.eye(3)[[0, 1, 2, 0]]
    temperature = fit_temperature(logits, [0, 1, 2, 0])
    assert softmax(logits, temperature).max() == pytest.approx(5 / 6, abs=1e-3)  # (4 + 1) / (4 + 2)
    assert temperature > LIMITS[0]


def test_logits_that_say_nothing_keep_temperature_one():
    assert fit_temperature(np.zeros((6, 3)), [0, 1, 2, 0, 1, 2]) == 1.0
    assert fit_temperature(np.zeros((0, 3)), []) == 1.0


def test_softmax_equals_torch():
    logits = np.random.default_rng(0).normal(size=(4, 6)) * 50
    expected = torch.tensor(logits / 1.7).softmax(dim=1).numpy()
    np.testing.assert_allclose(softmax(logits, 1.7), expected, rtol=1e-12)


def test_calibration_mends_overconfidence_and_keeps_the_order():
    logits, labels = draw(2000, 3.0)
    found = calibrate(logits, labels)
    assert found.before.ece > 0.15
    assert found.after.ece < 0.04
    assert found.after.log_loss < found.before.log_loss
    assert found.after.brier < found.before.brier
    assert found.pictures == 2000
    assert sum(item.count for item in found.after.reliability) == 2000
    assert found.risk_coverage[-1]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert all(0.6 < value < 1 for value in found.wrong_detection.values())


def test_cross_fitting_leaves_the_own_fold_out():
    logits, labels = draw(50, 1.0)
    found = cross_fitted(logits, labels)
    inside = np.arange(50) % 5 == 3
    own = fit_temperature(logits[~inside], labels[~inside])
    np.testing.assert_allclose(found[inside], log_softmax(logits[inside], own))
    np.testing.assert_array_equal(cross_fitted(logits[:9], labels[:9]), log_softmax(logits[:9]))


def test_the_temperature_of_a_mean_of_samples() -> None:
    """Logits with noise, as of dropout masks: the mean is less certain than it should be."""
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((1500, 4))
    shares = softmax(logits)
    labels = np.array([generator.choice(4, p=share) for share in shares])
    samples = logits[:, None] + 1.5 * generator.standard_normal((1500, 20, 4))
    assert fit_temperature(logits[:, None], labels) == fit_temperature(logits, labels)
    temperature = fit_temperature(samples, labels)
    assert temperature < 0.9 < fit_temperature(logits, labels)
    grid = np.exp(np.linspace(-1.5, 0.5, 81))
    means = [np.log(softmax(samples, t).mean(axis=1)) for t in grid]
    losses = [-mean[np.arange(1500), labels].mean() for mean in means]
    assert temperature == pytest.approx(grid[np.argmin(losses)], rel=0.05)

    def error(temperature: float) -> float:
        return quality(np.log(softmax(samples, temperature).mean(axis=1)), labels).ece

    assert error(temperature) < 0.75 * error(1.0)
    whole = cross_fitted(samples, labels)
    assert quality(whole, labels).ece == pytest.approx(error(temperature), abs=0.01)


def test_samples_are_measured_with_both_temperatures() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    single = 3 * np.eye(3)[labels] + generator.normal(0, 2, (300, 3))
    samples = single[:, None] + generator.normal(0, 3, (300, 20, 3))
    found = calibrate_samples(samples, labels, 2.0)
    mean = np.exp(log_mean(samples, 2.0))
    sure = mean.max(axis=1)
    right = mean.argmax(axis=1) == labels
    edges = np.clip((sure * 15).astype(int), 0, 14)
    gaps = [abs((sure - right)[edges == b].sum()) for b in range(15)]
    assert found.before.ece == pytest.approx(sum(gaps) / 300, abs=1e-9)
    assert found.after.log_loss < found.before.log_loss
    assert found.samples == 20
