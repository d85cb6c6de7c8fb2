"""Options that may stand without a value."""

import pytest

from transferkit.cli.options import with_values


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("predict run a.png --mc-dropout", "predict run a.png --mc-dropout 30"),
        ("predict run --mc-dropout a.png", "predict run --mc-dropout 30 a.png"),
        ("predict run a.png --mc-dropout 8 --json", "predict run a.png --mc-dropout 8 --json"),
        ("finetune --mirror data", "finetune --mirror on data"),
        ("finetune data --mirror auto", "finetune data --mirror auto"),
        ("finetune data --mirror --seed 1", "finetune data --mirror on --seed 1"),
    ],
)
def test_a_usual_value_stands_where_none_is_typed(typed: str, meant: str) -> None:
    assert with_values(typed.split()) == meant.split()
