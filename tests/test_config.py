import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from transferkit.cli import app
from transferkit.config import Config, OptionField, Section, option_fields
from transferkit.errors import UserError
from transferkit.recipes import load_config

FIELDS = option_fields()
WITHOUT_FLAG = {"data.path"}  # an argument of its own


def other_value(item: OptionField) -> Any:
    """Return an allowed value that is not the default."""
    kind, default = item.annotation, item.default
    kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
    kind = next(k for k in kinds if k is not type(None))
    if get_origin(kind) is tuple:
        return ["a", "b"] if get_args(kind)[0] is str else [8, 4]
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != default)
    special = {"cache.budget": "3GB", "data.background": "black", "backbone.image_size": 64}
    if item.key in special:
        return special[item.key]
    if kind is bool:
        return not default
    if kind is float:
        return 0.25
    if kind is int:
        return 3 if default != 3 else 4
    return Path("some/where") if kind is Path else "resnet18"


def needs(key: str) -> dict[str, Any]:
    """Return what else must be set so that an option has an effect."""
    return {"head.activation": {"head.layers": [8]}}.get(key, {})


def value_at(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def as_stored(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_every_field_of_every_section_is_an_option() -> None:
    keys = {
        f"{part.name}.{item.name}"
        for part in fields(Config)
        if is_dataclass(get_type_hints(Config)[part.name])
        for item in fields(get_type_hints(Config)[part.name])
    }
    assert {item.key for item in FIELDS} == keys - WITHOUT_FLAG


def test_flags_are_unique_and_well_formed() -> None:
    flags = [flag for item in FIELDS for flag in item.option.flag.split("/")]
    assert len(flags) == len(set(flags))
    assert all(re.fullmatch("--[a-z][a-z-]+", flag) for flag in flags)


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.key)
def test_an_option_is_explained_in_a_sentence(item: OptionField) -> None:
    assert re.fullmatch(r"[A-Z].*[.\]]", item.option.help), item.option.help
    assert len(item.option.help) < 100


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.key)
def test_an_option_is_reached_by_recipe_set_and_flag(item: OptionField) -> None:
    value = other_value(item)
    assert as_stored(value) != item.default
    recipe: dict[str, Any] = {}
    for key, given in ({item.key: value} | needs(item.key)).items():
        section, name = key.split(".")
        recipe.setdefault(section, {})[name] = given
    assert value_at(load_config(recipe), item.key) == as_stored(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("'", '"')
    by_set = load_config(None, [f"{item.key}={text}"], needs(item.key))
    by_flag = load_config(None, (), {item.key: value} | needs(item.key))
    assert by_set == by_flag == load_config(recipe)


@pytest.mark.parametrize("command", ["finetune", "plan"])
def test_the_commands_have_every_option(command: str) -> None:
    registered = next(c for c in app.registered_commands if c.callback.__name__ == command)  # type: ignore[union-attr]
    hints = registered.callback.__annotations__  # type: ignore[union-attr]
    for item in FIELDS:
        declared = get_args(hints[item.key.replace(".", "__")])[1]
        names = [declared.default, *(declared.param_decls or ())]
        assert item.option.flag in names
        assert item.option.help in declared.help
        assert item.key in declared.help


BOUNDED = [(item, bound) for item in FIELDS for bound in item.constraints]


def limit(bound: Any) -> tuple[float, float]:
    """Return the value at a bound and a step out of the allowed range."""
    for kind, name, step in ((Ge, "ge", -1), (Gt, "gt", -1), (Le, "le", 1), (Lt, "lt", 1)):
        if isinstance(bound, kind):
            return getattr(bound, name), step
    raise AssertionError(bound)


@pytest.mark.parametrize(("item", "bound"), BOUNDED, ids=lambda v: getattr(v, "key", str(v)))
def test_bounds_hold(item: OptionField, bound: Any) -> None:
    edge, step = limit(bound)
    outside = edge if isinstance(bound, Gt | Lt) else edge + step
    with pytest.raises(UserError, match=re.escape(item.key)) as refused:
        load_config(None, (), {item.key: outside})
    assert refused.value.exit_code == 2
    if isinstance(bound, Ge | Le):
        assert value_at(load_config(None, (), {item.key: edge}), item.key) == edge


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.key)
def test_a_wrong_type_is_refused_with_the_key(item: OptionField) -> None:
    with pytest.raises(UserError, match=re.escape(item.key)) as refused:
        load_config(None, (), {item.key: {"a": 1}})
    assert refused.value.exit_code == 2


def test_defaults_are_allowed() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_is_nan_or_infinite(value: float) -> None:
    for item in FIELDS:
        if item.annotation is float:
            with pytest.raises(UserError, match=re.escape(item.key)):
                load_config(None, (), {item.key: value})


def test_every_section_refuses_unknown_keys() -> None:
    for name, kind in get_type_hints(Config).items():
        if isinstance(kind, type) and issubclass(kind, Section):
            with pytest.raises(UserError, match=f"unknown key {name}.zzz"):
                load_config({name: {"zzz": 1}})
