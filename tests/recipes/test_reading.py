import os
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.config import Augmentation, Config, Data, HeadOptions, Stage, Training
from transferkit.errors import UserError
from transferkit.recipes.reading import (
    config_of,
    describe_recipe,
    find_recipe,
    load_config,
    read_recipe,
    shipped_recipes,
    to_toml,
)
from transferkit.recipes.typed import parse_set, parse_stages
from transferkit.runs.folder import RunFolder

WHAT = st.one_of(st.sampled_from(["head", "all"]), st.integers(1, 999))
RATES = st.none() | st.floats(1e-9, 10, allow_nan=False)
DECAYS = st.none() | st.floats(1e-9, 1, allow_nan=False)
STAGES = st.lists(
    st.builds(Stage, WHAT, st.integers(1, 10_000), RATES, DECAYS, st.booleans()),
    min_size=1,
    max_size=4,
).map(lambda stages: (replace(stages[0], if_improving=False), *stages[1:]))
SPACES = st.sampled_from(["", " ", "  "])


def refusal_of(action: Callable[[], object]) -> UserError | None:
    """Return the usage error that an action ends in; None when it ends well."""
    try:
        action()
    except UserError as error:
        if error.exit_code == 2:
            return error
        raise
    return None


def written(stage: Stage, space: str) -> str:
    """Write a stage in the compact form."""
    rate = "" if stage.lr is None else f"@{stage.lr!r}"
    decay = "" if stage.decay is None else f"~{stage.decay!r}"
    return f"{space}{stage.unfreeze}:{stage.epochs}{rate}{decay}{'?' * stage.if_improving}{space}"


@settings(deadline=None)
@given(stages=STAGES, space=SPACES)
def test_the_compact_plan_is_read_as_written(stages: tuple[Stage, ...], space: str) -> None:
    text = ",".join(written(stage, space) for stage in stages)
    assert load_config({"stages": parse_stages(text)}).stages == stages
    assert load_config(None, [f"stages={text}"]).stages == stages
    assert load_config({"stages": text}).stages == stages


@settings(deadline=None)
@given(text=st.text("heada l0123456789:@~?,.e-+", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_plan_or_is_refused(text: str) -> None:
    error = refusal_of(lambda: load_config(None, (), {"stages": parse_stages(text)}))
    assert error is None or "stage" in str(error)


def test_an_example_of_every_part() -> None:
    assert parse_stages("head:20@3e-3, 2:8~0.3 ,all:4?") == [
        {"unfreeze": "head", "epochs": 20, "lr": 3e-3, "if_improving": False},
        {"unfreeze": 2, "epochs": 8, "decay": 0.3, "if_improving": False},
        {"unfreeze": "all", "epochs": 4, "if_improving": True},
    ]


@settings(deadline=None)
@given(
    stages=st.just(()) | STAGES,
    layers=st.lists(st.integers(1, 4096), max_size=3).map(tuple),
    lr=st.floats(0, 10, exclude_min=True),
    exclude=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
    path=st.none() | st.sampled_from(["a b", 'say "hi"', "été", "a\\b", "#1", "2024"]).map(Path),
    views=st.none() | st.integers(0, 64),
    flip=st.booleans(),
)
def test_a_configuration_survives_being_written(
    stages: tuple[Stage, ...],
    layers: tuple[int, ...],
    lr: float,
    exclude: tuple[str, ...],
    path: Path | None,
    views: int | None,
    flip: bool,
) -> None:
    config = Config(
        data=Data(path=path, exclude=exclude),
        head=HeadOptions(layers=layers, activation="gelu" if layers else "relu"),
        augment=Augmentation(views=views, flip=flip),
        training=Training(lr=lr),
        stages=stages,
    )
    assert load_config(tomllib.loads(to_toml(config, "# a header\n"))) == config


def test_a_written_number_stays_a_number() -> None:
    assert tomllib.loads(to_toml(Config(training=Training(lr=1e-3))))["training"]["lr"] == 0.001


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("training.lr=1e-3", "training.lr", 0.001),
        ("training.seed=3", "training.seed", 3),
        ("device.precision=32", "device.precision", "32"),
        ("data.path=2024", "data.path", "2024"),
        ("backbone.name=1e3", "backbone.name", "1e3"),
        ("data.strict=true", "data.strict", True),
        ("data.exclude=['a', 'b']", "data.exclude", ["a", "b"]),
        ("backbone.name=resnet18", "backbone.name", "resnet18"),
        ("backbone.name='a=b'", "backbone.name", "a=b"),
        ("data.path=a=b", "data.path", "a=b"),
        ("data.path=", "data.path", ""),
        ("data.path=1\ntraining.lr=2", "data.path", "1\ntraining.lr=2"),
    ],
)
def test_set_reads_a_toml_value_else_text(pair: str, key: str, value: Any) -> None:
    assert parse_set(pair) == (key, value)


@pytest.mark.parametrize("pair", ["", "=", "=1", "training.lr", ".=1", "a..b=1", " =3"])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="is not KEY=VALUE") as refused:
        parse_set(pair)
    assert refused.value.exit_code == 2


@settings(deadline=None)
@given(pair=st.text(max_size=30))
def test_any_pair_is_taken_or_refused(pair: str) -> None:
    refusal_of(lambda: load_config(None, [pair]))


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ({"trainning": {}}, ["unknown key trainning", "did you mean training?"]),
        ({"head": {"layer": [3]}}, ["head.layer;", "did you mean head.layers?", "dropout"]),
        ({"augment": {"level": "litght"}}, ["augment.level", "'medium'", "did you mean light?"]),
        ({"training": {"lr": "1e-3"}}, ["training.lr must be a valid number or 'auto'", "'1e-3'"]),
        ({"training": {"batch_size": 8.5}}, ["training.batch_size", "valid integer", "8.5"]),
        ({"training": {"seed": True}}, ["training.seed", "integer"]),
        ({"data": {"strict": 1}}, ["data.strict", "boolean"]),
        ({"data": {"exclude": "cat"}}, ["data.exclude", "array", "'cat'"]),
        ({"data": [1]}, ["data must be an object"]),
        ({"stages": [{"unfreeze": "top", "epochs": 1}]}, ["stages.0.unfreeze", "'all' or 'solve'"]),
        ({"stages": [{"unfreeze": 1}]}, ["stages.0.epochs is missing"]),
        ({"stages": [{"unfreeze": 1, "epoch": 2}]}, ["stages.0.epoch;", "stages.epochs?"]),
        ({"stages": {"epochs": 1}}, ["stages must be a valid array"]),
        ({"training": {"metric": "x" * 500}}, ["..."]),
    ],
)
def test_a_wrong_recipe_is_refused_in_words(recipe: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_config(recipe)
    text = str(refused.value)
    assert refused.value.exit_code == 2
    assert all(part in text for part in parts), text
    assert len(text) < 600
    assert "pydantic" not in text


def test_all_problems_are_told_at_once() -> None:
    recipe = {"training": {"lr": 0, "metric": "f1", "lrr": 1}, "extra": 3, "stages": [{}]}
    with pytest.raises(UserError, match="6 options are wrong") as refused:
        load_config(recipe)
    assert len(refused.value.where.splitlines()) == 6


def test_all_contradictions_are_told_at_once() -> None:
    flags = {
        **{"backbone.pretrained": False, "backbone.weights": "f", "cache.budget": "much"},
        **{"augment.level": "none", "augment.views": 2, "data.background": "mauvish"},
        **{"head.activation": "tanh", "stages": parse_stages("head:1?")},
    }
    with pytest.raises(UserError, match="7 options are wrong"):
        load_config(None, (), flags)


def test_flags_win_over_sets_and_sets_over_the_recipe() -> None:
    recipe = {"training": {"lr": 0.1, "seed": 1, "batch_size": 2}}
    config = load_config(
        recipe, ["training.lr=0.2", "training.seed=2", "training.lr=0.4"], {"training.lr": 0.3}
    )
    assert (config.training.lr, config.training.seed, config.training.batch_size) == (0.3, 2, 2)
    assert recipe == {"training": {"lr": 0.1, "seed": 1, "batch_size": 2}}  # not written to


def test_a_value_in_the_place_of_a_table() -> None:
    with pytest.raises(UserError, match="training is a value, not a table"):
        load_config({"training": 1}, ["training.lr=1"])


def recipe_file(folder: Path, content: bytes) -> Path:
    path = folder / "recipe.toml"
    path.write_bytes(content)
    return path


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, b"\xef\xbb\xbf[training]\r\nlr = 1e-3\r\n")
    assert load_config(read_recipe(path)).training.lr == 1e-3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\xfea\x00", "is not a TOML text file"),
        (b"a = = 1", "is not valid TOML"),
        (b"a = 1\na = 2", "is not valid TOML"),
        (b"#" * 1_000_001, "is larger than a recipe can be"),
        (b"a = " + b"[" * 50_000 + b"]" * 50_000, "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what) as refused:
        read_recipe(recipe_file(tmp_path, content))
    assert refused.value.exit_code == 2
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("depth", [50, 150, 250, 600])
def test_deep_nesting_is_refused_shortly(tmp_path: Path, depth: int) -> None:
    with pytest.raises(UserError) as refused:
        load_config(read_recipe(recipe_file(tmp_path, b"a = " + b"[" * depth + b"]" * depth)))
    assert refused.value.exit_code == 2
    assert len(str(refused.value)) < 400


def test_a_name_that_is_not_valid_text_is_refused() -> None:
    with pytest.raises(UserError, match="not valid UTF-8"):
        load_config(None, (), {"data.path": os.fsdecode(b"d\xff")})


def test_dates_and_other_toml_values_are_refused_in_words(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, b"[training]\nlr = 2024-01-01\nseed = 0x10\n")
    with pytest.raises(UserError, match=r"training\.lr must be .* or 'auto', not '2024-01-01'"):
        load_config(read_recipe(path))


def test_recipes_are_found_by_path_name_and_run_folder(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, b"")
    assert find_recipe(str(path)) == path
    assert find_recipe(str(tmp_path)) == path
    assert find_recipe("quickstart") == find_recipe("quickstart.toml")
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "none.toml"), "linear_prob", ""):
        with pytest.raises(UserError, match="no recipe") as refused:
            find_recipe(name)
        assert ", ".join(shipped_recipes()) in refused.value.where
    assert "did you mean quickstart?" in missing("quick_start")


def missing(name: str) -> str:
    with pytest.raises(UserError) as refused:
        find_recipe(name)
    return str(refused.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_are_described(name: str) -> None:
    path = shipped_recipes()[name]
    assert load_config(read_recipe(path)) is not None
    assert describe_recipe(path)


def test_a_recipe_without_a_comment_has_no_description(tmp_path: Path) -> None:
    assert describe_recipe(recipe_file(tmp_path, b"[training]\nlr = 1\n")) == ""


def test_a_run_of_an_earlier_release_loads_though_its_options_are_refused_today(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    text = '[schedule]\nname = "performance"\npatience = 9\n'
    run.write_recipe(text)
    assert config_of(run).schedule.patience == 9
    with pytest.raises(UserError, match="never acts"):
        load_config(tomllib.loads(text))


def test_a_run_older_than_the_choice_of_framing_and_size_is_not_judged_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_recipe("training.seed = 3\n")
    backbone = config_of(run).backbone
    assert (backbone.crop, backbone.image_size) == ("backbone", "backbone")
    run.write_recipe('[backbone]\ncrop = "pad"\nimage_size = 64\n')
    backbone = config_of(run).backbone
    assert (backbone.crop, backbone.image_size) == ("pad", 64)


@pytest.mark.parametrize(("earlier", "now"), [("true", "on"), ("false", "off"), ('"auto"', "auto")])
def test_a_switch_of_an_earlier_release_still_loads(earlier: str, now: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[[stages]]\nunfreeze = "solve"\nepochs = 1\n[solve]\nmirror = {earlier}\n')
    assert load_config(read_recipe(path)).solve.mirror == now
