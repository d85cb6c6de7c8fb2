"""`transferkit lab`: the list, one experiment, all of them, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transferkit.lab.finding import Finding, Panel, lines
from transferkit.lab.topics import TOPICS, Topic
from transferkit.verbs import lab as verb

QUICK = ("skip", "dropout")
Cli = Callable[..., Any]
FOUND = Finding(
    "Two lines",
    (Panel("One panel", lines=lines({"a": [1, 2], "b": [2, 1]})),),
    ("It rises by 1.", "It falls by 1.", "They cross."),
    (("name", "steps"), ("a", "12")),
)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "TOPICS", {name: TOPICS[name] for name in QUICK})
    monkeypatch.setattr(Topic, "run", lambda self, scale=1.0: FOUND)


def test_without_a_topic_they_are_listed(cli: Cli) -> None:
    listed = cli("lab", "--json").json["topics"]
    assert {row["topic"]: row["summary"] for row in listed} == {
        name: topic.summary for name, topic in TOPICS.items()
    }
    assert all(f"{name} " in cli("lab").out for name in TOPICS)


@pytest.mark.usefixtures("_quick")
def test_an_experiment_shows_its_sentences_and_draws_its_figure(cli: Cli, tmp_path: Path) -> None:
    out = cli("lab", "Skip", "--output", tmp_path / "new" / "figures").out
    assert all(text in out for text in (FOUND.title, *FOUND.sentences, "lab-skip.png", "12"))
    with Image.open(tmp_path / "new" / "figures" / "lab-skip.png") as picture:
        assert picture.width > 600


@pytest.mark.usefixtures("_quick")
def test_all_experiments_as_json(cli: Cli) -> None:
    found = cli("lab", "all", "-o", "figures", "--json").json["experiments"]
    assert [experiment["topic"] for experiment in found] == list(QUICK)
    assert found[0]["sentences"] == list(FOUND.sentences)
    assert {path.name for path in Path("figures").iterdir()} == {
        f"lab-{name}.png" for name in QUICK
    }


def test_an_unknown_experiment_names_the_nearest(cli: Cli) -> None:
    result = cli("lab", "dropuot")
    assert result.code == 2
    assert "did you mean dropout?" in result.err


def test_a_folder_that_cannot_be_made_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("lab", "skip", "-o", tmp_path / "file")
    assert result.code == 1
    assert "cannot write to" in result.err


def test_a_page_ends_with_its_experiment(cli: Cli) -> None:
    assert cli("explain", "skip").out.rstrip().endswith("see it: transferkit lab skip")
    assert cli("explain", "skip", "--json").json["lab"] == "skip"
    assert "see it" not in cli("explain", "seed").out
