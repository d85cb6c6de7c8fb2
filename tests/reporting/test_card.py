import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from transferkit.config import Config, Data
from transferkit.reporting.card import base_model, escape_markdown, model_card
from transferkit.reporting.gather import RunData

EVIL = "</script><script>alert('x')</script>"
HUB = {"backbone": "tf_efficientnet_lite0", "license": "apache-2.0"}


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., RunData]) -> RunData:
    made = make_run(tmp_path)
    preprocessing = {"height_px": 32, "width_px": 32}
    more = {"background": "white", "preprocessing": preprocessing, "started_from": "embedded: x"}
    description = made.description | HUB | more
    return replace(made, description=description)


def with_description(run: RunData, **values: Any) -> RunData:
    return replace(run, description=run.description | values)


def test_the_hub_reads_the_card(run: RunData) -> None:
    card = ModelCard(model_card(run, {"accuracy": (0.5, 0.9)}))
    data = card.data
    assert data.license == "apache-2.0"
    assert data.library_name == "transferkit"
    assert data.pipeline_tag == "image-classification"
    assert data.base_model == "timm/tf_efficientnet_lite0.in1k"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert (result.dataset_name, result.dataset_split) == (run.config.data.path.name, "validation")  # type: ignore[union-attr]
    assert "(95 % interval 50.0% to 90.0%)" in card.text
    assert "| accuracy | 75.0% | 50.0% to 90.0% |" in card.text


@pytest.mark.parametrize(
    ("license_name", "expected", "other_name"),
    [
        ("MIT", "mit", None),
        ("unknown", "unknown", None),
        ("none: from scratch", "unknown", None),
        ("fair-noncommercial-research", "other", "fair-noncommercial-research"),
    ],
)
def test_licences_are_those_of_the_hub(
    run: RunData, license_name: str, expected: str, other_name: str | None
) -> None:
    data = ModelCard(model_card(with_description(run, license=license_name), {})).data
    assert data.license == expected
    assert data.to_dict().get("license_name") == other_name


@pytest.mark.parametrize("source", ["random (seed 0)", "file /home/me/a.pt", None])
def test_only_a_known_model_is_named_as_base(run: RunData, source: str | None) -> None:
    assert base_model(HUB | {"started_from": source}) is None


def test_no_path_of_this_machine_is_told(run: RunData, tmp_path: Path) -> None:
    source = f"file {tmp_path}/secret/a.pt"
    data = Data(path=tmp_path / "secret" / "photos")
    card = model_card(replace(with_description(run, started_from=source), config=Config(data)), {})
    assert str(tmp_path) not in card
    assert "secret" not in card
    assert "a.pt" in card
    assert "photos" in card


def test_names_stay_text(run: RunData) -> None:
    card = model_card(run, {})
    assert "<script" not in card
    assert "&lt;script&gt;" in card
    rows = [line for line in card.splitlines() if line.startswith("| &lt;/script")]
    assert len(rows) == 1
    assert EVIL not in card
    assert escape_markdown("a|b\n# [x](y) `c` *d*") == r"a\|b \# \[x\]\(y\) \`c\` \*d\*"


def test_what_is_not_known_is_left_out(run: RunData) -> None:
    card = model_card(replace(run, calibration=None, data={}, config=None), {})
    assert "Not measured: probabilities may be overconfident." in card
    assert "pictures in folders" in card
    assert ModelCard(card).data.eval_results
    assert not re.search("None|nan", card)


def test_rare_classes_are_named(run: RunData) -> None:
    data = run.data | {"counts": {"cat": {"train": 3}, "x": {"train": 20}}}
    assert "Few training pictures, so little to go by: cat (3)." in model_card(
        replace(run, data=data), {}
    ).replace("\\(", "(").replace("\\)", ")")
