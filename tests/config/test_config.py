import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt

from transferkit.cli import app
from transferkit.cli.options import pretrains
from transferkit.config import (
    Config,
    OptionField,
    Section,
    option_fields,
    words_beside_a_number,
)
from transferkit.config.optimization import SCHEDULE_USES
from transferkit.config.pretraining import USES, VARIANT_USES
from transferkit.errors import UserError
from transferkit.recipes.network_checks import ONLY_FROM_SCRATCH
from transferkit.recipes.reading import load_config

FIELDS = option_fields()
STORED = [item for item in FIELDS if item.key != "backbone.from_run"]  # which becomes others
WITHOUT_FLAG = {"data.path"}  # an argument of its own


def other_value(item: OptionField) -> Any:
    """Return an allowed value that is not the default."""
    kind, default = item.annotation, item.default
    kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
    kind = next(k for k in kinds if k is not type(None))
    special: dict[str, Any] = {"cache.budget": "3GB", "data.background": "black"}
    special |= {"pretraining.budget": "20m", "training.budget": "20m", "pretraining.projection": 64}
    special |= {"backbone.image_size": 64, "optimizer.name": "sgd"}
    special |= {"backbone.crop_share": 0.75}
    special |= {"backbone.initializer": "he_uniform", "head.initializer": "he_uniform"}
    special |= {"head.classifier_initializer": "normal:0.1", "head.dropout": [0.5]}
    special |= {"data.depth_range": [0.0, 4095.0], "data.bands": [4, 3, 2]}
    if item.key in special:
        return special[item.key]
    if item.key.startswith("schedule.") and get_origin(kind) is tuple:
        return [0.25, 0.5]
    if words := words_beside_a_number(item.annotation):
        return (
            next(word for word in words if word != default)
            if len(words) > 1
            else 0.25
            if (default in words)
            else words[0]
        )
    if get_origin(kind) is tuple:
        if get_origin(get_args(kind)[0]) is Literal:
            return [get_args(get_args(kind)[0])[0]]
        return ["a", "b"] if get_args(kind)[0] in (str, Path) else [8, 4]
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != default)
    if kind is bool:
        return not default
    if kind is float:
        return 0.25
    if kind is int:
        return 3 if default != 3 else 4
    return Path("some/where") if kind is Path else "resnet18"


def needs(key: str) -> dict[str, Any]:
    """Return what else must be set so that an option has an effect."""
    section, name = key.split(".")
    if section == "solve":
        return {"stages": "solve"}
    alpha = {f"{section}.activation": "selu", f"{section}.dropout": 0.1}
    found: dict[str, Any] = {
        "slope": {f"{section}.activation": "leaky_relu"},
        "dropout_kind": alpha if section == "backbone" else {**alpha, "head.layers": [8]},
    }.get(name, {})
    if key in ("head.activation", "head.initializer", "head.slope"):
        found = {**found, "head.layers": [8]}
    if section == "backbone" and name in ONLY_FROM_SCRATCH:
        found = {**found, "backbone.name": "mlp"}
    found |= {"data.manifest": "table.csv"} if key == "data.allow_outside" else {}
    found |= {"stages": "simclr:3, solve"} if key == "data.unlabeled" else {}
    sampled = ("mc_scope", "enable_dropout")
    found |= {"predict.mc_dropout": 5} if section == "predict" and name in sampled else {}
    found |= {"predict.coverage": 0.9} if key == "predict.conformal" else {}
    found |= {"predict.abstain_above": 1.0} if key == "predict.abstain_by" else {}
    found |= {"predict.select": 5} if key == "predict.by" else {}
    sets: dict[str, dict[str, Any]] = {
        "optimizer.momentum": {"optimizer.name": "momentum"},
        "optimizer.rho": {"optimizer.name": "rmsprop"},
        "regularization.max_norm_of": {"regularization.max_norm": 2.0},
        "schedule.values": {"schedule.boundaries": [0.5]},
        "schedule.boundaries": {"schedule.values": [1.0, 0.5, 0.1]},
    }
    if section == "pretraining" and name in USES:
        found |= {"pretraining.method": USES[name][0]}
    found |= {"pretraining.probe": "some"} if key == "pretraining.probe_every" else {}
    if section == "pretraining" and name in VARIANT_USES:
        found |= {"pretraining.method": "autoencoder", "pretraining.variant": VARIANT_USES[name]}
    if key == "schedule.momentum_high":
        return {"schedule.name": "1cycle", "schedule.momentum_low": 0.0}
    uses = [s for s, names in SCHEDULE_USES.items() if section == "schedule" and name in names]
    return found | sets.get(key, {}) | ({"schedule.name": uses[0]} if uses else {})


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


def belongs(key: str, command: str) -> bool:
    """Whether a command has an option."""
    if command == "pretrain":
        return pretrains(key)
    if key.startswith("pretraining."):
        return False
    return key.startswith("predict.") == (command == "predict")


def test_flags_are_unique_and_well_formed() -> None:
    flags = [flag for item in FIELDS for flag in item.option.flag.split("/")]
    for command in ("finetune", "predict", "pretrain"):
        own = [item for item in FIELDS if belongs(item.key, command)]
        names = [flag for item in own for flag in item.option.flag.split("/")]
        assert len(names) == len(set(names))
    assert all(re.fullmatch("--[a-z][a-z0-9-]+", flag) for flag in flags)


@pytest.mark.parametrize("item", FIELDS, ids=lambda item: item.key)
def test_an_option_is_explained_in_a_sentence(item: OptionField) -> None:
    # some begin with what reads them, "rbm, gan: ...", or with a name of code
    assert re.fullmatch(r"([a-z0-9, ]+: .*|torch\..*|[A-Z].*)[.\]]", item.option.help), (
        item.option.help
    )
    assert len(item.option.help) < 100


@pytest.mark.parametrize("item", STORED, ids=lambda item: item.key)
def test_an_option_is_reached_by_recipe_set_and_flag(item: OptionField) -> None:
    value = other_value(item)
    assert as_stored(value) != item.default
    recipe: dict[str, Any] = {}
    for key, given in ({item.key: value} | needs(item.key)).items():
        section, _, name = key.partition(".")
        recipe |= {section: recipe.get(section, {}) | {name: given} if name else given}
    stored = as_stored([Path(v) for v in value] if item.key == "solve.extends" else value)
    assert value_at(load_config(recipe), item.key) == stored
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("'", '"')
    by_set = load_config(None, [f"{item.key}={text}"], needs(item.key))
    by_flag = load_config(None, (), {item.key: value} | needs(item.key))
    assert by_set == by_flag == load_config(recipe)


@pytest.mark.parametrize("command", ["finetune", "plan", "predict", "pretrain"])
def test_the_commands_have_every_option(command: str) -> None:
    registered = next(c for c in app.registered_commands if c.callback.__name__ == command)  # type: ignore[union-attr]
    hints = registered.callback.__annotations__  # type: ignore[union-attr]
    for item in (i for i in FIELDS if belongs(i.key, command)):
        declared = get_args(hints[item.key.replace(".", "__")])[1]
        names = [declared.default, *(declared.param_decls or ())]
        assert item.option.flag in names
        assert item.option.help == declared.help


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
        found = load_config(None, (), {item.key: edge} | needs(item.key))
        assert value_at(found, item.key) == edge


@pytest.mark.parametrize("item", STORED, ids=lambda item: item.key)
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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alpha without SELU": (
        {"head.layers": [8], "head.dropout_kind": "alpha"},
        r"head\.dropout_kind alpha needs .*selu",
    ),
    "alpha without hidden layers": ({"head.dropout_kind": "alpha"}, r"head\.dropout_kind"),
    "alpha at rate 0": (
        {"head.layers": 8, "head.activation": "selu", "head.dropout_kind": "alpha"}
        | {"head.dropout": 0.0},
        r"head\.dropout_kind has no effect",
    ),
    "alpha without SELU, from scratch": (
        {"backbone.name": "cnn", "backbone.dropout_kind": "alpha", "backbone.dropout": 0.1},
        r"backbone\.dropout_kind alpha needs",
    ),
    "dropout of one": ({"head.dropout": 1.0}, r"head\.dropout\.0 must be less than 1"),
    "negative dropout": ({"head.dropout": [-0.1]}, r"head\.dropout\.0 .*greater than or equal"),
    "dropout by text": ({"head.dropout": "much"}, r"head\.dropout must be a valid array"),
    "too many rates": ({"head.dropout": [0.1, 0.2]}, r"head\.dropout has 2 rates for 1 new layers"),
    "too few rates": ({"head.layers": [8, 4], "head.dropout": [0.1, 0.2]}, "2 rates for 3"),
    "spatial in an mlp": (
        {"backbone.name": "mlp", "backbone.dropout_kind": "spatial", "backbone.dropout": 0.1},
        r"backbone\.dropout_kind spatial needs feature maps",
    ),
    "a kind of dropout without dropout": (
        {"backbone.name": "cnn", "backbone.dropout_kind": "spatial"},
        r"backbone\.dropout_kind has no effect",
    ),
    "a slope for ReLU": ({"head.layers": [8], "head.slope": 0.1}, r"head\.slope"),
    "a slope for ReLU, from scratch": (
        {"backbone.name": "mlp", "backbone.slope": 0.1},
        r"backbone\.slope",
    ),
    "an unknown activation": (
        {"backbone.name": "mlp", "backbone.activation": "relo"},
        r"backbone\.activation .*did you mean relu",
    ),
    "an unknown initialiser": (
        {"head.layers": [8], "head.initializer": "xavier"},
        r"head\.initializer 'xavier' is not known; there are glorot_normal",
    ),
    "an initialiser of no layers": ({"head.initializer": "he_normal"}, r"head\.initializer"),
    "no deviation": (
        {"backbone.name": "mlp", "backbone.initializer": "normal:0"},
        r"backbone\.initializer 'normal:0'",
    ),
    "batch norm before and after": (
        {"head.layers": [8], "head.batchnorm": ["before", "after"]},
        r"head\.batchnorm: before and after",
    ),
    "batch norm of no layers": ({"head.batchnorm": ["after"]}, r"head\.batchnorm"),
    "batch norm of one picture": (
        {"head.batchnorm": ["first"], "training.batch_size": 1},
        r"head\.batchnorm needs training\.batch_size",
    ),
    "depth of a timm model": ({"backbone.depth": 3}, r"backbone\.depth belongs to .*scratch"),
    "drop path from scratch": (
        {"backbone.name": "cnn", "backbone.drop_path": 0.1},
        r"backbone\.drop_path",
    ),
    "a random head alone": ({"backbone.name": "mlp", "stages": "head:1"}, "from scratch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_network_options_without_sense_are_refused_with_their_key(name: str) -> None:
    options, pattern = REFUSED[name]
    with pytest.raises(UserError, match=pattern) as refused:
        load_config(None, (), options)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("blocks", ["backbone.reuse_blocks=5", "backbone.name=mlp"])
@pytest.mark.parametrize("option", ["training.checkpoint_activations=true", "clipping.adaptive=1"])
def test_options_of_blocks_are_taken_where_random_blocks_train(blocks: str, option: str) -> None:
    alone = ["training.depth=0", "training.full_epochs=0", option]
    assert not load_config(None, [*alone, blocks]).trains_head_alone
    with pytest.raises(UserError, match="has no effect"):
        load_config(None, alone)


def test_one_rate_stands_for_a_list() -> None:
    assert load_config({"head": {"dropout": 0.3}}).head.dropout == (0.3,)
    assert load_config(None, ["head.dropout=0.3"]).head.dropout == (0.3,)
    assert load_config({"head": {"layers": 64}}).head.layers == (64,)
