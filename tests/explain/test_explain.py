"""Every option and every member of a family is on a page, and pages say only what is there."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from transferkit import explain
from transferkit.config import option_fields
from transferkit.errors import UserError
from transferkit.explain import find_topic, read_page, topics
from transferkit.recipes.problems import all_keys

TOPICS = list(topics())
OPTIONS = {item.key: item for item in option_fields()}


def page_of(topic: str) -> dict[str, Any]:
    return tomllib.loads((explain.FOLDER / f"{topic}.toml").read_text())


def written(topic: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a page into a folder of its own."""
    (folder / f"{topic}.toml").write_text(
        f'title = "T"\nwhat = "w"\nwhen = "n"\nsource = ["s"]\n{text}'
    )
    monkeypatch.setattr(explain, "FOLDER", folder)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_is_whole(topic: str) -> None:
    page = read_page(topic)
    assert page.title
    assert page.what
    assert page.when
    assert page.options or topic in ("monitoring", "export", "learning-curve")  # or of its own
    assert all(page.source)
    assert page.source
    assert all(all(row) and len(row) == len(t.headings) for t in page.tables for row in t.rows)
    text = (explain.FOLDER / f"{topic}.toml").read_text()
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("topic", TOPICS)
def test_options_are_as_the_configuration_has_them(topic: str) -> None:
    for option in read_page(topic).options:
        assert option.flag == OPTIONS[option.key].option.flag
        assert option.help == OPTIONS[option.key].option.help


def test_every_option_is_on_some_page() -> None:
    named = {option.key for topic in TOPICS for option in read_page(topic).options}
    assert OPTIONS.keys() - named == set()


def test_every_key_of_a_recipe_is_on_some_page() -> None:
    pages = [read_page(topic) for topic in TOPICS]
    named = {option.key for page in pages for option in page.options}
    words = {word.strip(".,;:()`") for page in pages for word in page.what.split()}
    rest = [key for key in all_keys() if key not in named and key not in words]
    assert all(key.removeprefix("stages.") in words for key in rest)


def test_every_member_of_a_family_is_on_its_page() -> None:
    for topic in TOPICS:
        for table in read_page(topic).tables:
            members = explain.family(table.of, OPTIONS)
            assert [name for name, *_ in table.rows] == list(members)


def test_default_and_range_are_read_from_the_configuration() -> None:
    options = {o.key: o for topic in TOPICS for o in read_page(topic).options}
    assert options["training.lr"].default == "0.003"
    assert options["training.lr"].allowed == "> 0, ≤ 10; or auto"
    assert options["training.warmup"].allowed == "≥ 0, < 1"
    assert options["data.balance"].allowed == "none | sampler | loss"
    assert (options["augment.flip"].default, options["augment.flip"].allowed) == ("yes", "")
    assert options["head.layers"].default == ""


def test_a_member_without_a_cell_has_the_first_line_of_its_docstring() -> None:
    (table,) = read_page("schedules").tables
    assert ("cosine", "Half a cosine from 1 at progress 0 to 0 at progress 1.") in table.rows


def test_an_alias_leads_to_one_page() -> None:
    aliases = [word for topic in TOPICS for word in page_of(topic).get("aliases", ())]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(TOPICS)
    assert all(word == word.lower() and " " not in word for word in aliases)


def test_a_page_that_explains_what_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = 'options = []\n[[table]]\nof = "data.balance"\nheadings = ["a", "b"]\n'
    written("x", table + 'rows.samplr = "drawn"\n', tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="samplr"):
        read_page("x")
    written("x", 'options = ["data.balanc"]\n', tmp_path, monkeypatch)
    with pytest.raises(KeyError, match=r"data\.balanc"):
        read_page("x")


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("Early_Stopping", "early-stopping"),
        ("early stopping", "early-stopping"),
        ("training.patience", "early-stopping"),
        ("--min-delta", "early-stopping"),
        ("no-flip", "augmentation"),
        ("views", "augmentation"),
        ("adamw", "optimizers"),
        *((word, "gradients") for word in ("vanishing", "exploding", "gradients", "gradient")),
        *((word, "stages") for word in ("freezing", "unfreezing")),
        *((word, "transfer") for word in ("transfer", "transfer learning", "fine-tuning")),
        *((word, "guidelines") for word in ("guidelines", "recipes")),
        *((word, "export") for word in ("export", "low-latency", "pruning", "folding")),
        ("self-normalizing", "activations"),
        ("dropout", "regularization"),
        ("mlp", "scratch"),
        ("calibration", "uncertainty"),
        ("skip", "skip"),
        ("backbone.skip", "skip"),
    ],
)
def test_a_topic_is_found_by_what_belongs_to_it(text: str, topic: str) -> None:
    assert find_topic(text) == topic


def test_an_unknown_topic_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_topic("mixip")
    assert caught.value.exit_code == 2
    assert "did you mean mixup?" in caught.value.remedy
    assert "early-stopping" in caught.value.where
    with pytest.raises(UserError, match="pages speak of 'lr'") as caught:
        find_topic("lr")
    assert "transferkit explain stages" in caught.value.remedy
