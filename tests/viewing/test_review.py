"""Decisions on suspects, sent as the page sends them: each action, undo, and a new start."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit.closed_form.suspects import Estimate
from transferkit.data.index import scan
from transferkit.errors import UserError
from transferkit.finetuning.wrong_labels import Suspect, WrongLabels
from transferkit.viewing import review as reviewing
from transferkit.viewing.review import Review
from transferkit.viewing.server import open_server

PATHS = ("train/disc/0.png", "train/disc/1.png", "train/square/0.png", "val/stripes/0.png")
HEADER = "path,label,action,was\n"


@pytest.fixture(scope="module")
def found(pictures: Path) -> WrongLabels:
    """Four suspects; square is proposed for each, disc for a square."""
    index = scan(pictures)
    suspects = []
    for path in PATHS:
        position, label = index.paths.index(path), path.split("/")[1]
        proposed = "disc" if label == "square" else "square"
        near = tuple(
            tuple(p for p in range(len(index)) if index.classes[index.labels[p]] == name)[:2]
            for name in (label, proposed)
        )
        suspects.append(Suspect(position, label, proposed, 0.9, 0.05, *near))
    estimate = Estimate(3.0, 1.0, torch.zeros(3, 3), 4.0)
    return WrongLabels(index, len(index), estimate, tuple(suspects))


Post = Callable[..., tuple[int, Any]]


@pytest.fixture
def post() -> Iterator[Callable[[Review], Post]]:
    """Return a function that serves a review and returns how to send to it."""
    opened = []

    def serve(review: Review) -> Post:
        server = open_server(0, {}, review.answers(), lambda error: None)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        opened.append((server, thread))

        def send(path: str, content: Any = None) -> tuple[int, Any]:
            own = f"127.0.0.1:{server.server_port}"
            headers = {
                "Content-Type": "application/octet-stream",
                "Origin": f"http://{own}",
                "Cookie": f"transferkit-{server.server_port}={server.token}",
            }
            body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
            connection = http.client.HTTPConnection(own, timeout=60)
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        return send

    yield serve
    for server, thread in opened:
        server.shutdown()
        thread.join()
        server.server_close()


def decide(send: Post, number: int, action: str, label: str = "") -> dict[str, Any]:
    status, state = send("/decide", {"number": number, "action": action, "label": label})
    assert status == 200, state
    return state


def test_every_action_is_in_the_file_when_it_is_answered(
    found: WrongLabels, tmp_path: Path, post: Callable[[Review], Post]
) -> None:
    file = tmp_path / "corrections.csv"
    send = post(Review(found, file))
    state = send("/state")[1]
    assert state["decisions"] == [None] * 4
    assert not state["can_undo"]
    assert not file.exists()
    lines = [
        (0, "change", "square", "train/disc/0.png,square,change,disc"),
        (1, "keep", "", "train/disc/1.png,disc,keep,disc"),
        (2, "leave out", "", "train/square/0.png,,leave out,square"),
        (3, "unsure", "", "val/stripes/0.png,stripes,unsure,stripes"),
    ]
    for count, (number, action, label, _) in enumerate(lines, start=1):
        state = decide(send, number, action, label)
        assert file.read_text() == HEADER + "".join(f"{each[3]}\n" for each in lines[:count])
        assert sum(state["counts"].values()) == count
    assert state["counts"] == {"keep": 1, "change": 1, "leave out": 1, "unsure": 1}
    assert state["decisions"][0] == {"action": "change", "label": "square"}


def test_undo_goes_back_through_all_that_was_decided(
    found: WrongLabels, tmp_path: Path, post: Callable[[Review], Post]
) -> None:
    file = tmp_path / "corrections.csv"
    send = post(Review(found, file))
    states = [(send("/state")[1], "")]
    for number, action, label in [
        (0, "keep", ""),
        (3, "change", "disc"),
        (0, "change", "stripes"),  # otherwise now
        (1, "leave out", ""),
    ]:
        state = decide(send, number, action, label)
        states.append((state, file.read_text()))
    for undone, (state, text) in zip((1, 0, 3, 0), states[-2::-1], strict=True):
        status, now = send("/undo")
        assert (status, now.pop("undone")) == (200, undone)
        assert now == state
        assert sorted(file.read_text().split()) == sorted((text or HEADER).split())
    assert send("/undo") == (422, {"error": "there is nothing to undo"})


def test_a_new_start_goes_on_and_can_undo_what_was_before(
    found: WrongLabels, tmp_path: Path, post: Callable[[Review], Post]
) -> None:
    file = tmp_path / "corrections.csv"
    first = Review(found, file)
    first.decide({"number": 2, "action": "change", "label": "stripes"})
    first.decide({"number": 0, "action": "unsure"})
    send = post(Review(found, file))  # nothing of the first one is used
    assert send("/state")[1] == first.state()
    assert send("/undo")[1]["undone"] == 0
    assert send("/undo")[1]["undone"] == 2
    assert file.read_text() == HEADER


def test_what_else_the_file_says_stays(found: WrongLabels, tmp_path: Path) -> None:
    file = tmp_path / "corrections.csv"
    file.write_text("path;label;why\ntrain/stripes/1.png;disc;=blurred\nelsewhere.png;;\n")
    review = Review(found, file)
    review.decide({"number": 0, "action": "keep"})
    review.undo()
    review.decide({"number": 0, "action": "leave out"})
    again = Review(found, file)
    assert again.state()["counts"]["leave out"] == 1
    again.decide({"number": 1, "action": "keep"})
    assert file.read_text() == (
        "path,label,action,was,why\n"
        "train/stripes/1.png,disc,change,,'=blurred\n"
        "elsewhere.png,,leave out,,\n"
        "train/disc/0.png,,leave out,disc,\n"
        "train/disc/1.png,disc,keep,disc,\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[1]",
        b"[" * 5000,
        b'{"a": "' + b"x" * 20_000 + b'"}',
        {"number": 4, "action": "keep"},
        {"number": -1, "action": "keep"},
        {"number": True, "action": "keep"},
        {"number": "../../etc/passwd", "action": "keep"},
        {"number": 0, "action": "drop"},
        {"number": 0, "action": ["keep"]},
        {"number": 0, "action": "change"},
        {"number": 0, "action": "change", "label": "ring"},
        {"number": 0, "action": "change", "label": ["disc"]},
    ],
    ids=lambda content: str(content)[:40],
)
def test_what_is_no_decision_changes_nothing(
    found: WrongLabels, tmp_path: Path, post: Callable[[Review], Post], content: Any
) -> None:
    file = tmp_path / "corrections.csv"
    send = post(Review(found, file))
    assert send("/decide", content)[0] == 422
    assert not file.exists()
    assert send("/state")[1]["decisions"] == [None] * 4


def test_a_card_has_its_pictures_by_number(
    found: WrongLabels, tmp_path: Path, post: Callable[[Review], Post]
) -> None:
    send = post(Review(found, tmp_path / "corrections.csv"))
    status, card = send("/card", {"number": 2})
    assert status == 200
    assert (card["path"], card["label"], card["proposed"]) == (PATHS[2], "square", "disc")
    pictures = [card["picture"], *(near["picture"] for near in card["for_label"])]
    pictures += [near["picture"] for near in card["for_proposed"]]
    assert len(pictures) == 5
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    for number in (4, "0", None, 1.0, PATHS[0]):
        assert send("/card", {"number": number}) == (422, {"error": "no such picture"})


def test_what_cannot_be_written_is_not_decided(
    found: WrongLabels,
    tmp_path: Path,
    post: Callable[[Review], Post],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "corrections.csv"
    send = post(Review(found, file))
    before = decide(send, 0, "keep"), file.read_text()

    def full(path: Path, write: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reviewing, "write_atomically", full)
        status, told = send("/decide", {"number": 1, "action": "keep"})
        assert (status, "No space left" in told["error"]) == (422, True)
        assert send("/undo")[0] == 422
    assert (send("/state")[1], file.read_text()) == before
    file.write_text(HEADER)  # by somebody else
    status, told = send("/decide", {"number": 1, "action": "keep"})
    assert (status, "has changed since" in told["error"]) == (422, True)
    assert file.read_text() == HEADER


def test_a_file_of_something_else_is_refused(found: WrongLabels, tmp_path: Path) -> None:
    file = tmp_path / "corrections.csv"
    file.write_text("name,price\nx,1\n")
    with pytest.raises(UserError, match="no column path and label"):
        Review(found, file)
    assert file.read_text() == "name,price\nx,1\n"
