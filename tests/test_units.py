import pytest

from transferkit.units import bytes_text, count_text, duration_text, rate_text


@pytest.mark.parametrize(
    ("function", "number", "text"),
    [
        (count_text, 830, "830"),
        (count_text, 10_248, "10.2 k"),
        (count_text, 999_960, "1.0 M"),
        (count_text, 4_652_008, "4.7 M"),
        (count_text, 2.5e9, "2.5 G"),
        (bytes_text, 12, "12 B"),
        (bytes_text, 5_400_000, "5.4 MB"),
        (duration_text, 0.44, "0.4 s"),
        (duration_text, 9.96, "10 s"),
        (duration_text, 59.6, "1 min 00 s"),
        (duration_text, 185, "3 min 05 s"),
        (duration_text, 3599.7, "1 h 00 min"),
        (duration_text, 7830, "2 h 10 min"),
        (rate_text, 0, "frozen"),
        (rate_text, 3e-4, "3e-4"),
        (rate_text, 0.00149, "1.5e-3"),
        (rate_text, 1.0, "1e0"),
    ],
)
def test_units(function, number, text):
    assert function(number) == text
