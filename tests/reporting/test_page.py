import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from transferkit.data.reading import Reading
from transferkit.reporting.gather import RunData
from transferkit.reporting.page import share_text
from transferkit.reporting.run_page import run_page
from transferkit.reporting.thumbnails import thumbnail

MakeRun = Callable[..., RunData]
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


@pytest.fixture
def page(tmp_path: Path, make_run: MakeRun) -> str:
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    return run_page(make_run(tmp_path))


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


def test_an_older_run_has_no_section_on_certainty(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    assert 'id="certainty"' in run_page(run)
    assert 'id="certainty"' not in run_page(replace(run, calibration=None))


def test_many_classes_become_a_drawing(tmp_path: Path, make_run: MakeRun) -> None:
    page = run_page(make_run(tmp_path, tuple(f"class {i}" for i in range(200))))
    assert 'class="matrix"' in page
    assert '<table class="confusion">' not in page


def test_a_thumbnail_keeps_its_shape(tmp_path: Path) -> None:
    Image.new("RGBA", (600, 300), (0, 0, 0, 0)).save(tmp_path / "a.png")
    uri = thumbnail(tmp_path / "a.png", Reading((10, 20, 30)), side_px=100)
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "b.jpg").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (100, 50)
        assert image.getpixel((50, 25)) == pytest.approx((10, 20, 30), abs=3)
    assert thumbnail(tmp_path / "missing.png", Reading()) == ""
    assert thumbnail(None, Reading()) == ""


def test_shares() -> None:
    assert [share_text(v) for v in (0.5, 1.0, None, float("nan"))] == ["50.0%", "100.0%", "–", "–"]


def test_labels_that_look_wrong_are_shown_with_what_they_may_be(
    tmp_path: Path, make_run: MakeRun
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    row = {"path": "0.png", "label": "cat", "proposed": EVIL}
    row |= {"probability": 0.93, "probability_label": 0.04}
    suspects = {"number": 3.0, "error": 0.2, "rows": [row]}
    run = replace(make_run(tmp_path), learning={"suspects": suspects})
    text = Elements(run_page(run)).text
    start = text.index("Labels that look wrong")
    assert "3 ± 1 labels are probably wrong" in " ".join(text[start : start + 4])
    after = text[start : start + 40]
    assert "93%" in after
    assert after.index("0.png") < after.index("93%")
    assert "Labels that look wrong" not in run_page(make_run(tmp_path))


def test_groups_likeness_and_folds_stand_beside_the_accuracy(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run = make_run(tmp_path)
    left_out = {"accuracy": 0.98, "low": 0.9, "high": 0.99, "pictures": 40, "differs": False}
    similar = {"groups": 9, "in_groups": 36, "by_picture": 0.98, "by_group": 0.81}
    folds = {"accuracy": 0.84, "by_fold": [0.8, 0.9], "pictures": run.summary["val_pictures"]}
    more = {"leave_one_out": {**left_out, "groups": 9, "similar": similar}, "folds": folds}
    page = run_page(replace(run, summary={**run.summary, **more}))
    assert "with its group (9 groups)" in page
    assert "36 of them are nearly the same as others: where these leave together, it is 81" in page
    assert "In 2 folds, each judged by a model without it, the accuracy is 84" in page
    assert "pictures out of fold of" in page
    assert "so it flatters a little" not in page
    assert "so it flatters a little" in run_page(run)
