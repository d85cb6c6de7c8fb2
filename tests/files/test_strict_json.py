import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.files.strict_json import strict_json, to_plain


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float
    where: Path


def test_everything_becomes_plain():
    value = {
        "nan": float("nan"),
        "inf": [np.float32("inf"), -float("inf")],
        "numpy": (np.int64(3), np.bool_(True), np.array([[1.5, np.nan]])),
        "tensor": torch.tensor(2),
        "path": Path("a/b"),
        "enum": Colour.RED,
        "point": Point(0.5, Path("c")),
        "set": {"b", "a"},
        3: None,
    }
    assert json.loads(strict_json(value)) == {
        "nan": None,
        "inf": [None, None],
        "numpy": [3, True, [[1.5, None]]],
        "tensor": 2,
        "path": "a/b",
        "enum": "red",
        "point": {"x": 0.5, "where": "c"},
        "set": ["a", "b"],
        "3": None,
    }


def test_file_name_that_is_no_utf8():
    text = strict_json({"path": "a\udcff", "name": "鷺"})
    text.encode("utf-8")
    assert json.loads(text) == {"path": "a\udcff", "name": "鷺"}


def test_unknown_type_refused():
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_plain(object())
