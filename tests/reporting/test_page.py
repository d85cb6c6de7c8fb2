import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.config import Config, Data
from transferkit.inference.calibration import calibrate
from transferkit.reporting.gather import Picture, RunData
from transferkit.reporting.page import share_text
from transferkit.reporting.run_page import run_page
from transferkit.reporting.thumbnails import thumbnail

EVIL = "</script><script>alert('x')</script>"


class Elements(HTMLParser):
    """Collects what a browser would see: elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def finished(root: Path, classes: tuple[str, ...] = ("cat", EVIL)) -> RunData:
    """Return a run of four pictures, one of which is wrong, with two stages."""
    summary = {
        "metrics": {"accuracy": 0.75, "log_loss": 0.5},
        "val_pictures": 4,
        "train_pictures": 8,
        "head_only_accuracy": 0.5,
        "seconds": 3.0,
        "parts": {"scan": 1.0},
        "stages": [
            {
                **{"name": name, "epochs": 1, "seconds": 1.0, "seconds_per_epoch": 1.0},
                **{"pictures_per_second": 8.0, "cached": True, "best_accuracy": 0.75},
                "reason": "finished",
            }
            for name in ("head", "top 1")
        ],
    }
    rows = tuple(
        {
            **{"stage": stage, "stage_name": str(stage), "train_loss": 1.0, "val_loss": 0.5},
            **{"train_accuracy": 0.5, "val_accuracy": 0.75, "best": stage, "lr/head": 1e-3},
        }
        for stage in (0, 1)
    )
    a, b = classes[:2]
    answers = [((a, 0.9), (b, 0.1)), ((b, 0.8), (a, 0.2)), ((b, 0.6), (a, 0.4))]
    truths = [a, b, b, a]
    pictures = tuple(
        Picture(f"{EVIL if i else ''}{i}.png", truth, answer)
        for i, (truth, answer) in enumerate(zip(truths, [*answers, answers[1]], strict=True))
    )
    data = {
        "counts": {name: {"train": 4, "val": 2, "test": 0} for name in classes},
        "splits": {"train": 8, "val": 4, "test": 0},
        "warnings": [EVIL],
    }
    description = {"classes": list(classes), "backbone": "x", "started_from": "y", "license": "z"}
    config = Config(data=Data(path=root))
    scores = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 2.0]])
    calibration = calibrate(scores, np.array([0, 1, 1, 0])).to_dict()
    return RunData(
        *(root / "run", summary, description, data, calibration, rows, pictures, config, EVIL)
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    return run_page(finished(tmp_path))


def test_names_cannot_become_code(page: str) -> None:
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert EVIL in elements.text
    assert "alert('x')</script>" not in page


def test_nothing_is_fetched(page: str) -> None:
    for tag, attributes in Elements(page).found:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes  # the policy would drop it


def test_the_policy_allows_exactly_the_pages_own_code(page: str) -> None:
    policies = [a["content"] for _, a in Elements(page).found if a.get("http-equiv")]
    for tag in ("style", "script"):
        (code,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        expected = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{expected}'" in str(policies[0])
    assert "unsafe" not in str(policies[0])
    assert "default-src 'none'" in str(policies[0])


def test_pictures_have_text_alternatives(page: str) -> None:
    assert any(tag == "img" for tag, _ in Elements(page).found)
    for tag, attributes in Elements(page).found:
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg" and attributes.get("class") not in ("bar", "key", "plot"):
            assert attributes.get("aria-label")


def test_the_page_says_what_came_out(page: str) -> None:
    text = Elements(page).text
    assert "75.0%" in text
    assert any("+25.0 points" in line for line in text)
    assert page.count('class="card"') == 1 + 4  # one mistake; all four among the least sure
    assert "no picture" in text  # the files are not there


def test_an_older_run_has_no_section_on_certainty(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert 'id="certainty"' in run_page(run)
    assert 'id="certainty"' not in run_page(replace(run, calibration=None))


def test_many_classes_become_a_drawing(tmp_path: Path) -> None:
    page = run_page(finished(tmp_path, tuple(f"class {i}" for i in range(200))))
    assert 'class="matrix"' in page
    assert '<table class="confusion">' not in page


def test_a_thumbnail_keeps_its_shape(tmp_path: Path) -> None:
    Image.new("RGBA", (600, 300), (0, 0, 0, 0)).save(tmp_path / "a.png")
    uri = thumbnail(tmp_path / "a.png", (10, 20, 30), 10**6, side_px=100)
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "b.jpg").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (100, 50)
        assert image.getpixel((50, 25)) == pytest.approx((10, 20, 30), abs=3)
    assert thumbnail(tmp_path / "missing.png", (0, 0, 0), 10**6) == ""
    assert thumbnail(None, (0, 0, 0), 10**6) == ""


def test_shares() -> None:
    assert [share_text(v) for v in (0.5, 1.0, None, float("nan"))] == ["50.0%", "100.0%", "–", "–"]
