"""A deep network that cannot learn is named as such in the closing lines; one that can is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
DEEP = ("--backbone", "mlp", "--backbone-depth", 20, "--image-size", 16, "--device", "cpu")
SHORT = ("--stages", "all:4", "--batch-size", 6, "--views", 0)


@pytest.mark.parametrize(
    ("options", "ill"),
    [(("--activation", "logistic", "--initializer", "normal:1.0"), True),
     (("--activation", "selu"), False)],
)  # fmt: skip
def test_a_twenty_layer_network(
    options: tuple[str, ...], ill: bool, pictures: Path, cli: Cli
) -> None:
    result = cli("finetune", pictures, *DEEP, *options, *SHORT, "--out", "r")
    assert result.code == 0, result.err
    assert Path("r/plots/inside.png").is_file()
    named = [line for line in result.out.splitlines() if "vanishing" in line or "exploding" in line]
    assert bool(named) == ill, result.out
    assert ("Diagnosis" in result.out) == ill
