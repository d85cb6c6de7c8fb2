"""Fifty suspects decided in a real browser, by keyboard, by touch, and through a killed server."""

import csv
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.closed_form.suspects import Estimate
from transferkit.config import Config, Data
from transferkit.data.index import ScanOptions, scan
from transferkit.finetuning.wrong_labels import Suspect, WrongLabels
from transferkit.verbs.review import make_page
from transferkit.viewing.review import Review
from transferkit.viewing.server import open_server

CLASSES = ("<img src=x onerror=alert(1)>", "a plain one", "zebra & {{ 7*7 }}")
COUNT = 50


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> WrongLabels:
    """Fifty suspects among sixty pictures, whose classes and files have hostile names."""
    root = tmp_path_factory.mktemp("review") / "data"
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(60 * label, 60 * label + 60, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"<b onload=alert(2)> {number}.png")
    index = scan(root, ScanOptions(use="measure"))
    suspects = []
    for position in range(COUNT):
        label = int(index.labels[position])
        others = [np.flatnonzero(index.labels == k)[:3].tolist() for k in (label, (label + 1) % 3)]
        names = (index.classes[label], index.classes[(label + 1) % 3])
        suspects.append(Suspect(position, *names, 0.9, 0.05, *map(tuple, others)))
    estimate = Estimate(12.0, 3.0, torch.zeros(3, 3), 20.0)
    return WrongLabels(index, len(index), estimate, tuple(suspects))


@pytest.fixture
def serve(found: WrongLabels, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Return a function that starts a server on the file and ends the one before without a word."""
    file, running = tmp_path / "corrections.csv", []

    def end() -> None:
        for server, thread in running:
            server.shutdown()
            thread.join()
            server.server_close()
        running.clear()

    def start() -> str:
        end()
        page = make_page(Config(data=Data(path=found.index.root)), found, file)
        server = open_server(0, {"/": page}, Review(found, file).answers(), lambda error: None)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return server.address

    yield start
    end()


def press(page: Any, key: str) -> None:
    """Press a key and wait until what it asked for is done."""
    typed = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
    for kind, written in (("keyDown", typed), ("keyUp", "")):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, text=written)
    settled(page)


def settled(page: Any) -> None:
    page.wait_for("document.getElementById('card').getAttribute('aria-busy') === 'false'")


def opened(page: Any, address: str, width: int, dark: bool = False) -> None:
    page.screen(width, dark=dark)
    page.open(address)
    settled(page)


def text(page: Any, name: str) -> str:
    return str(page.value(f"document.getElementById('{name}').textContent"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def fine(page: Any, width: int) -> None:
    assert page.problems == []
    assert page.value("document.querySelectorAll('b[onload], img[onerror]').length") == 0
    assert page.value("document.documentElement.scrollWidth") <= width


def test_fifty_are_decided_by_keys_with_the_server_killed_in_between(
    page: Any, serve: Callable[[], str], found: WrongLabels, tmp_path: Path
) -> None:
    file = tmp_path / "corrections.csv"
    opened(page, serve(), 1280)
    made: list[str] = []
    for number in range(COUNT):
        if number in (17, 40):  # killed: what was decided is in the file, and the rest comes next
            opened(page, serve(), 390)
        assert text(page, "title") == f"suspect {number + 1} of {COUNT}"
        assert text(page, "label") == found.suspects[number].label
        key = "cklu"[number % 4]
        press(page, key)
        made.append({"c": "change", "k": "keep", "l": "leave out", "u": "unsure"}[key])
        assert [row["action"] for row in rows(file)] == made
    counts = Counter(made)
    words = f"{counts['change']} changed, {counts['keep']} kept, {counts['leave out']} left out"
    assert text(page, "counts") == f"50 of 50 decided: {words}, {counts['unsure']} unsure"
    assert page.value("document.activeElement.id") == "end"
    assert "--corrections" in text(page, "end")
    for row, each in zip(rows(file), found.suspects, strict=True):
        right = {"change": each.proposed, "leave out": ""}.get(row["action"], each.label)
        assert row["path"] == found.index.paths[each.position]
        assert (row["label"], row["was"]) == (right, each.label)
    fine(page, 390)


def test_undo_and_moving_by_keys(page: Any, serve: Callable[[], str], tmp_path: Path) -> None:
    file = tmp_path / "corrections.csv"
    opened(page, serve(), 1280)
    for key in "kcl":
        press(page, key)
    assert [row["action"] for row in rows(file)] == ["keep", "change", "leave out"]
    press(page, "z")
    assert text(page, "title") == f"suspect 3 of {COUNT}"
    assert [row["action"] for row in rows(file)] == ["keep", "change"]
    press(page, "ArrowLeft")
    pressed = "document.querySelector('[aria-pressed=true]').dataset.action"
    assert (text(page, "title"), page.value(pressed)) == (f"suspect 2 of {COUNT}", "change")
    press(page, "u")  # otherwise now; then the first one that is open
    assert [row["action"] for row in rows(file)] == ["keep", "unsure"]
    assert text(page, "title") == f"suspect 3 of {COUNT}"
    for _ in range(3):
        press(page, "z")
    assert rows(file) == []
    assert page.value("document.getElementById('undo').getAttribute('aria-disabled')") == "true"
    press(page, "ArrowLeft")
    assert text(page, "title") == f"suspect {COUNT} of {COUNT}"
    page.value("document.getElementById('keys').click()")
    press(page, "k")  # single keys are off
    assert rows(file) == []
    fine(page, 1280)


def test_tab_and_enter_are_enough(
    page: Any, serve: Callable[[], str], found: WrongLabels, tmp_path: Path
) -> None:
    """Every control is reached, shows its focus, and has a name; another class can be chosen."""
    opened(page, serve(), 1280)
    reached = []
    for _ in range(12):
        page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", windowsVirtualKeyCode=9)
        page.call("Input.dispatchKeyEvent", type="keyUp", key="Tab", windowsVirtualKeyCode=9)
        active = "document.activeElement"
        if page.value(f"{active} === document.body"):
            break
        reached.append(page.value(f"{active}.id || {active}.dataset.action"))
        assert page.value(f"getComputedStyle({active}).outlineStyle") != "none"
    assert reached == [
        *("change", "keep", "leave out", "unsure", "class", "other", "back", "undo", "forward"),
        "keys",
    ]
    third = next(c for c in found.index.classes if c not in vars(found.suspects[0]).values())
    page.value("document.getElementById('class').focus()")
    page.value(f"document.getElementById('class').value = {third!r}")
    press(page, "k")  # a key inside the list chooses there, and decides nothing
    assert not (tmp_path / "corrections.csv").exists()
    page.value(f"document.getElementById('class').value = {third!r}")
    page.value("document.getElementById('other').focus()")
    press(page, "Enter")
    assert [row["label"] for row in rows(tmp_path / "corrections.csv")] == [third]
    page.value("document.querySelector('[data-action=keep]').focus()")
    press(page, "Enter")
    assert page.value("document.activeElement.dataset.action") == "keep"  # the focus stays


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_fingers_decide_and_a_screen_reader_is_told(
    page: Any, serve: Callable[[], str], found: WrongLabels, tmp_path: Path, width: int, dark: bool
) -> None:
    opened(page, serve(), width, dark)
    fine(page, width)
    origin = page.value("location.origin")
    assert all(request.startswith((origin, "data:")) for request in page.requests)
    images = "[...document.querySelectorAll('#card img')]"
    assert page.value(f"{images}.length") == 7
    assert page.value(f"{images}.every(image => image.naturalWidth > 0 && image.alt)")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"] and node.get("role")
    ]
    first = found.suspects[0]
    for role, name in (
        ("button", f"change to {first.proposed} C"),
        ("button", f"keep {first.label} K"),
        ("button", "leave out L"),
        ("combobox", "another class"),
        ("progressbar", "decided"),
        ("region", f"suspect 1 of {COUNT}"),
        ("group", "decision"),
    ):
        assert (role, name) in [(r, " ".join(n.split())) for r, n in named]
    assert all(name for role, name in named if role in ("button", "combobox", "checkbox", "image"))
    assert "status" in [role for role, _ in named]
    box = page.value(
        "(r => [r.x + r.width / 2, r.y + r.height / 2, r.height])"
        "(document.querySelector('[data-action=keep]').getBoundingClientRect())"
    )
    assert box[2] >= 44
    for kind, points in (("touchStart", [{"x": box[0], "y": box[1]}]), ("touchEnd", [])):
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    page.wait_for(f"document.getElementById('title').textContent === 'suspect 2 of {COUNT}'")
    settled(page)
    assert [row["action"] for row in rows(tmp_path / "corrections.csv")] == ["keep"]
    told = text(page, "told")
    assert f"kept as {first.label}. Suspect 2 of {COUNT}: labelled" in told
    fine(page, width)


def test_what_fails_is_told_and_not_counted(
    page: Any, serve: Callable[[], str], tmp_path: Path
) -> None:
    opened(page, serve(), 1280)
    press(page, "k")
    (tmp_path / "corrections.csv").write_text("path,label\n")  # by somebody else
    press(page, "k")
    assert "has changed since" in text(page, "problem")
    assert text(page, "title") == f"suspect 2 of {COUNT}"
    assert (tmp_path / "corrections.csv").read_text() == "path,label\n"
    assert all("422" in problem for problem in page.problems)
