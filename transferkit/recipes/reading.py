"""Recipes: TOML files, `--set` pairs and flags become one checked `Config`."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from transferkit.config import Config, Predict
from transferkit.data.addresses import address_of
from transferkit.errors import UserError, usage_error
from transferkit.files.foreign_files import parse_toml, path_problem
from transferkit.recipes.combinations import combination_problems
from transferkit.recipes.from_run import start_from
from transferkit.recipes.problems import describe_problems, refusal, shortened
from transferkit.recipes.typed import complete_shorthands, parse_set, parse_stages, take_pretraining
from transferkit.runs.folder import RECIPE, RunFolder

MAX_RECIPE_BYTES = 1_000_000


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with transferkit: name -> file."""
    package = Path(__file__).parent.parent
    for folder in (package / "shipped_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def describe_recipe(path: Path) -> str:
    """Return a recipe's first comment line: what it is for."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
    return ""


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by path or by a shipped recipe's name."""
    if problem := path_problem(name):
        raise usage_error(f"the recipe {shortened(name)} {problem}")
    path = Path(name)
    if path.is_dir() and (path / RECIPE).is_file():
        return path / RECIPE
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name.removesuffix(".toml") in shipped:
        return shipped[name.removesuffix(".toml")]
    close = difflib.get_close_matches(name, shipped, n=1)
    remedy = f"did you mean {close[0]}? " if close else ""
    raise usage_error(
        f"no recipe {name!r}",
        "it is neither a file nor one of: " + ", ".join(shipped),
        remedy + "`transferkit recipes` lists them",
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a TOML file into nested dicts. Raises UserError when it cannot be read or parsed."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise usage_error(f"{path} is larger than a recipe can be (1 MB)")
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise usage_error(f"cannot read the recipe {path}", error.strerror or "") from None
    except UnicodeDecodeError as error:
        raise usage_error(f"{path} is not a TOML text file", str(error)[:200]) from None
    except ValueError as error:
        raise usage_error(f"{path} is not valid TOML", str(error)[:200]) from None


def config_of(run: RunFolder) -> Config:
    """Return the configuration that a run was started with. Raises UserError when it is damaged.

    Combinations that are refused today may have been taken when it was started. A run that names no
    framing or no input size is older than their choice, and has the backbone's own.
    """
    try:
        recipe = parse_toml(run.read_recipe())
        if isinstance(section := recipe.setdefault("backbone", {}), dict):
            recipe["backbone"] = {"crop": "backbone", "image_size": "backbone", **section}
        return validate(merged(recipe, (), None), combinations=False)
    except ValueError as error:
        raise UserError(f"the recipe in {run.path} is damaged", str(error)[:200]) from None


def load_config(
    recipe: dict[str, Any] | None = None,
    sets: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Merge a recipe, `--set` pairs and flags (the later win) over the defaults, checked.

    flags: dotted key -> value, only those that were given.
    Raises a usage error that lists all problems at once: key path, value, what is allowed.
    """
    return validate(merged(recipe, sets, flags))


def merged(
    recipe: dict[str, Any] | None, sets: Iterable[str], flags: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Merge a recipe, `--set` pairs and flags (the later win) into nested dicts, unchecked."""
    try:
        raw: dict[str, Any] = json.loads(json.dumps(recipe or {}, default=str))
    except (RecursionError, ValueError):  # an integer may have more digits than Python prints
        raise refusal(["a value is nested too deeply, or a number too long"]) from None
    for key, value in [*map(parse_set, sets), *(flags or {}).items()]:
        *tables, last = key.split(".")
        table = raw
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise usage_error(f"{key}: {name} is a value, not a table")
        table[last] = value
    if isinstance(raw.get("stages"), str):
        raw["stages"] = parse_stages(raw["stages"])
    take_pretraining(raw, flags or ())
    complete_shorthands(raw)
    given = flags or {}
    if given.get("backbone.from_run") and given.get("backbone.pretrained") is False:
        raise usage_error("--from and --no-pretrained contradict each other: leave one out")
    return start_from(raw, config_of)


def predict_options(
    run: RunFolder, sets: Iterable[str], flags: Mapping[str, Any], ignore: Iterable[str] = ()
) -> Predict:
    """Return how a run predicts: as its recipe says, over which `--set` pairs and flags win.

    ignore: fields of the recipe that do not matter here. Raises a usage error for a key of another
    section, which only training reads.
    """
    kept = config_of(run).predict if "recipe" in run.files else Predict()
    base = {name: value for name, value in asdict(kept).items() if name not in set(ignore)}
    pairs = list(sets)
    others = [key for key, _ in map(parse_set, pairs) if not key.startswith("predict.")]
    if others:
        raise usage_error(
            f"--set {others[0]} has no effect here",
            "the run is trained already",
            "keys of prediction start with predict, e.g. --set predict.tta=8",
        )
    raw = {name: value for name, value in base.items() if value is not None}
    return load_config({"predict": raw}, pairs, flags).predict


def validate(raw: Mapping[str, Any], combinations: bool = True) -> Config:
    """Check nested dicts against `Config`: types, ranges, names, combinations; all at once."""
    from pydantic import ValidationError

    try:
        text = json.dumps(raw, default=str)
        config: Config = checker().validate_json(text, strict=True)
    except ValidationError as error:
        raise refusal(describe_problems([dict(item) for item in error.errors()])) from None
    except RecursionError:
        raise refusal(["a value is nested too deeply"]) from None
    if combinations and (problems := combination_problems(config)):
        raise refusal(problems)
    return config


@cache
def checker() -> Any:
    """Return pydantic's `TypeAdapter` of `Config`, which takes a tenth of a second to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def to_toml(config: Config, header: str = "") -> str:
    """Write the whole resolved configuration as a recipe that repeats the run."""
    import tomli_w

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return address_of(value) or str(value) if isinstance(value, Path) else value

    return header + tomli_w.dumps(plain(asdict(config)))
