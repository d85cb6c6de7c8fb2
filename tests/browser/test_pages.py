"""Reports and `view` with hostile names, in a real browser: no code runs, and they work."""

import io
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from transferkit.cli import main
from transferkit.files.csv_rows import from_csv, to_csv
from transferkit.runs.folder import open_run
from transferkit.verbs.view import make_pages, view_options
from transferkit.viewing.answer import Answerer
from transferkit.viewing.server import open_server

CLASSES = {
    "disc": "<img src=x onerror=alert(1)>",
    "square": "\"'><script>alert(2)<",
    "stripes": "{{ 7*7 }} ${alert(3)} & <b>",
}
FILE = "<svg onload=alert(4)> ' \" & .png"
TINY = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")


@pytest.fixture(scope="module")
def hostile_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes and files whose names are code."""
    root = tmp_path_factory.mktemp("hostile")
    for split in ("train", "val"):
        for kind, name in CLASSES.items():
            shutil.copytree(pictures / split / kind, root / "data" / split / name)
            first = root / "data" / split / name / "0.png"
            first.rename(first.with_name(FILE))
    run = root / "<u>run"
    arguments = ["finetune", root / "data", *TINY, "--stages", "1:2", "--views", "1", "--out", run]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERKIT_CACHE", str(root / "cache"))
        command(*arguments)
    return run


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", ["transferkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 0


@pytest.fixture(scope="module")
def address(hostile_run: Path) -> Iterator[str]:
    folder = open_run(hostile_run)
    options = view_options(folder, [], {})
    with Answerer(folder, options) as answerer:
        pages = make_pages(folder, answerer, lambda event: None)
        answers = {"/predict": lambda picture: answerer(picture).to_dict()}
        with open_server(0, pages, answers, lambda e: None) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield server.address
            server.shutdown()
            thread.join()


def nothing_ran(page: Any) -> None:
    assert page.problems == []
    assert (
        page.value("document.querySelectorAll('b[onload], svg[onload], img[onerror]').length") == 0
    )


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_report_opens_and_shows_names_as_text(
    page: Any, hostile_run: Path, width: int, dark: bool
) -> None:
    page.screen(width, dark=dark)
    page.open((hostile_run / "report.html").as_uri())
    nothing_ran(page)
    text = page.value("document.body.textContent")
    for name in (*CLASSES.values(), FILE):
        assert name in text
    assert page.value("document.documentElement.scrollWidth") <= width
    assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}


@pytest.fixture(scope="module")
def hostile_comparison(hostile_run: Path) -> Path:
    """The page of a run beside a copy of it that answers every picture otherwise."""
    other = hostile_run.parent / "<img src=x onerror=alert(6)>"
    shutil.copytree(hostile_run, other)
    rows = from_csv((other / "predictions.csv").read_text(encoding="utf-8"))
    for row in rows:
        row["label"], row["label_2"] = row["label_2"], row["label"]
    (other / "predictions.csv").write_text(to_csv(rows), encoding="utf-8")
    output = hostile_run.parent / "both.html"
    command("report", hostile_run, other, "-o", output)
    return output


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_runs_side_by_side_show_names_as_text(
    page: Any, hostile_run: Path, hostile_comparison: Path, width: int, dark: bool
) -> None:
    page.screen(width, dark=dark)
    page.open(hostile_comparison.as_uri())
    nothing_ran(page)
    text = page.value("document.body.textContent")
    for name in (*CLASSES.values(), FILE, "<img src=x onerror=alert(6)>", hostile_run.name):
        assert name in text
    assert page.value("document.querySelectorAll('#pictures .card img').length") == 12
    assert page.value("document.documentElement.scrollWidth") <= width
    assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}


def test_every_picture_is_there_to_be_printed(
    page: Any, hostile_run: Path, hostile_comparison: Path
) -> None:
    """Also those that nobody has scrolled to."""
    for path in (hostile_run / "report.html", hostile_comparison):
        page.screen(1280, height=300)
        page.open(path.as_uri())
        page.wait_for("[...document.images].every(image => image.complete)")
        assert page.value("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.value("document.images.length") >= 12
        assert not page.value("[...document.images].some(image => image.loading === 'lazy')")


def test_a_heading_sorts_its_table(page: Any, hostile_run: Path) -> None:
    page.open((hostile_run / "report.html").as_uri())
    cells = "[...document.querySelectorAll('#per-class tbody tr')].map(r => r.cells[5].textContent)"
    head = "document.querySelector('#per-class thead').rows[0].cells[5].querySelector('button')"
    page.value(f"{head}.click()")
    assert page.value(cells) == sorted(page.value(cells), key=float, reverse=True)
    page.value(f"{head}.click()")
    assert page.value(cells) == sorted(page.value(cells), key=float)
    nothing_ran(page)


def test_a_wide_confusion_matrix_is_printed_clear_of_its_neighbour(
    page: Any, hostile_run: Path
) -> None:
    page.screen(700)
    page.call("Emulation.setEmulatedMedia", media="print")
    page.open((hostile_run / "report.html").as_uri())
    twelve_more = """for (const row of document.querySelector('table.confusion').rows)
        for (let n = 0; n < 12; n++) row.append(row.cells[1].cloneNode(true));"""
    page.value(twelve_more)
    cells = page.value(
        """[document.querySelector('table.confusion'),
            document.querySelector('.pair:has(.confusion) figure + figure table')]
            .map(e => e.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])"""
    )
    (_, right, _, bottom), (left, _, top, _) = cells
    assert right <= left or bottom <= top


@pytest.mark.parametrize("width", [390, 1280])
def test_a_dropped_picture_is_answered(
    page: Any, address: str, hostile_run: Path, width: int
) -> None:
    page.screen(width)
    page.open(address)
    source = hostile_run.parent / "data" / "val" / CLASSES["disc"] / FILE
    page.drop(source, width // 2, 250)
    page.wait_for("document.querySelector('section.answer[data-done]') !== null")
    nothing_ran(page)
    card = page.value("document.querySelector('section.answer').textContent")
    assert FILE in card
    assert any(name in card for name in CLASSES.values())
    assert "entropy" in card
    assert page.value("document.querySelector('section.answer img').naturalWidth") > 0
    assert page.value("document.documentElement.scrollWidth") <= width
    origin = address.partition("?")[0]
    assert page.value("location.href") == origin  # without the token
    assert all(r.startswith((origin, "data:")) for r in page.requests)


def test_what_is_no_picture_is_told(page: Any, address: str, tmp_path: Path) -> None:
    page.open(address)
    path = tmp_path / "no.png"
    path.write_bytes(b"<script>alert(5)</script>")
    page.drop(path, 300, 250)
    page.wait_for("document.querySelector('section.answer[data-done]') !== null")
    assert "cannot be read" in page.value("document.querySelector('section.answer').textContent")
    # the browser itself notes the status 422 in its console; nothing else is there
    assert all("422" in problem for problem in page.problems)


def test_the_report_of_a_viewed_run_opens(page: Any, address: str) -> None:
    page.open(address)  # which sets the cookie
    page.open(f"{address.partition('?')[0]}report")
    nothing_ran(page)
    assert page.value("document.querySelectorAll('section').length") >= 4


def test_the_driver_notices_code_that_runs(page: Any, tmp_path: Path) -> None:
    """What the other tests rely on: a page whose script runs and fails is noticed."""
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><script>console.error('ran'); nothing.here</script>")
    page.open(path.as_uri())
    assert len(page.problems) == 2
