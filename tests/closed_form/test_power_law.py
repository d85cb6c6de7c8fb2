import numpy as np
from scipy.optimize import least_squares

from transferkit.closed_form.power_law import fit_power_law, law_at

SIZES = np.array([50.0, 100.0, 200.0, 400.0])


def test_laws_are_found_again() -> None:
    truth = np.array([[2.0, 0.5, 0.05], [0.9, 0.3, 0.0], [0.0, 1.0, 0.2]])
    errors = np.stack([law_at(truth, n) for n in SIZES], axis=1)
    found = fit_power_law(SIZES, errors)
    np.testing.assert_allclose(found[:2], truth[:2], atol=1e-9)
    np.testing.assert_allclose(law_at(found, 800), law_at(truth, 800), atol=1e-9)


def test_of_noisy_errors_it_is_the_weighted_least_squares_of_scipy() -> None:
    errors = np.array([0.31, 0.24, 0.215, 0.18])

    def off(law: np.ndarray) -> np.ndarray:
        return (law[0] * (SIZES / 400) ** -law[1] + law[2] - errors) * np.sqrt(SIZES)

    reference = least_squares(off, [0.1, 0.5, 0.05], bounds=([0, 0.05, 0], [9, 2, 1]))
    law = fit_power_law(SIZES, errors[None])[0]
    ours = off(np.array([law[0] * 400 ** -law[1], law[1], law[2]]))
    assert (ours @ ours) <= 2 * reference.cost * 1.02
    np.testing.assert_allclose(law_at(law[None], 800)[0], 0.16, atol=0.01)


def test_no_law_rises_or_goes_below_zero() -> None:
    rising, steep = np.array([0.1, 0.12, 0.11, 0.13]), np.array([0.4, 0.2, 0.05, 0.0])
    laws = fit_power_law(SIZES, np.stack([rising, steep]))
    assert laws[0, 0] == 0
    assert (law_at(laws, 1e6) >= 0).all()
    assert law_at(laws, 400)[1] < 0.06


def test_without_a_floor_it_is_a_line_of_logarithms() -> None:
    truth = np.array([[2.0, 0.5, 0.0]])
    errors = np.stack([law_at(truth, n) for n in SIZES], axis=1)
    np.testing.assert_allclose(fit_power_law(SIZES, errors, floor=False), truth, atol=1e-9)
    raised = fit_power_law(SIZES, errors + 0.1, floor=False)
    assert raised[0, 2] == 0
    assert raised[0, 1] < 0.4
