"""Recipes: TOML files, `--set` pairs and flags become one checked `Config`."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transferkit.config import Config, Predict, Stage, option_fields
from transferkit.config.network_checks import batchnorm_problems, network_problems
from transferkit.config.predict import predict_problems
from transferkit.config.pretraining import pretraining_problems
from transferkit.data.addresses import address_of
from transferkit.errors import UserError, usage_error
from transferkit.foreign_files import parse_toml, path_problem
from transferkit.from_run import start_from
from transferkit.optimization_checks import budget_problems, optimization_problems
from transferkit.run_folder import RECIPE, RunFolder
from transferkit.units import parse_bytes, parse_colour

MAX_RECIPE_BYTES = 1_000_000
MAX_SHOWN = 80  # characters of a wrong value
MOST_TOLD, LONGEST_TOLD = 7, 500
"""Problems that one message lists, and characters of each."""
UNION_TAGS = (
    *("literal['head','all']", "literal['auto']"),
    *("constrained-int", "int", "constrained-float", "NoneType"),
)


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with transferkit: name -> file."""
    package = Path(__file__).parent
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
    """Return the configuration that a run was started with. Raises UserError when it is damaged."""
    try:
        return load_config(parse_toml(run.read_recipe()))
    except ValueError as error:
        raise UserError(f"the recipe in {run.path} is damaged", str(error)[:200]) from None


def parse_set(pair: str) -> tuple[str, Any]:
    """Split `training.lr=1e-3` into its key and its value, read as TOML, else as a string."""
    key, equals, text = pair.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise usage_error(f"--set {pair!r} is not KEY=VALUE", "", "e.g. --set training.lr=1e-3")
    try:
        read = parse_toml(f"value = {text}")
    except ValueError:
        read = {}
    key, value = key.strip(), read["value"] if len(read) == 1 else text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return key, text if is_number and takes_text(key) else value


def takes_text(key: str) -> bool:
    """Whether an option is a text: then `device.precision=32` needs no quotes after `--set`."""
    section, _, name = key.partition(".")
    kind = get_type_hints(Config).get(section)
    hint = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    kinds = get_args(hint) or (hint,)
    return all(k in (str, Path, type(None)) or isinstance(k, str) for k in kinds) and bool(hint)


def parse_stages(text: str) -> list[dict[str, Any]]:
    """Read a compact plan such as `head:20@3e-3, 1:8@1e-3, 2:8~0.3, all:4?`.

    Each stage is WHAT:EPOCHS[@LR][~DECAY][?]; WHAT is head, all, or the number of block groups
    unfrozen from the top; `?` runs the stage only if the one before improved validation.
    """
    stages: list[dict[str, Any]] = []
    for part in text.split(","):
        body = part.strip()
        stage: dict[str, Any] = {"if_improving": body.endswith("?")}
        body, _, decay = body.removesuffix("?").partition("~")
        body, _, rate = body.partition("@")
        what, _, epochs = body.partition(":")
        try:
            stage["unfreeze"] = what.strip() if what.strip() in ("head", "all") else int(what)
            stage["epochs"] = int(epochs)
            stage |= {"lr": float(rate)} if rate else {}
            stage |= {"decay": float(decay)} if decay else {}
        except ValueError:
            raise usage_error(
                f"--stages: cannot read {shortened(part.strip())}",
                "each stage is WHAT:EPOCHS[@LR][~DECAY][?]; WHAT is head, all or a number",
                'e.g. --stages "head:20@3e-3, 1:8@1e-3, 2:8, all:4?"',
            ) from None
        stages.append(stage)
    return stages


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
    wrap_single_numbers(raw)
    given = flags or {}
    if given.get("backbone.from_run") and given.get("backbone.pretrained") is False:
        raise usage_error("--from and --no-pretrained contradict each other: leave one out")
    return start_from(raw, config_of)


def wrap_single_numbers(raw: dict[str, Any]) -> None:
    """Make a list, in place, of a number that stands for a list of numbers: `dropout = 0.2`."""
    for item in option_fields():
        section, _, name = item.key.partition(".")
        table = raw.get(section)
        if get_origin(item.annotation) is not tuple or not isinstance(table, dict):
            continue
        value = table.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            table[name] = [value]


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


def validate(raw: Mapping[str, Any]) -> Config:
    """Check nested dicts against `Config`: types, ranges, names, combinations; all at once."""
    from pydantic import ValidationError

    try:
        text = json.dumps(raw, default=str)
        config: Config = checker().validate_json(text, strict=True)
    except ValidationError as error:
        raise refusal(describe_problems([dict(item) for item in error.errors()])) from None
    except RecursionError:
        raise refusal(["a value is nested too deeply"]) from None
    if problems := combination_problems(config):
        raise refusal(problems)
    return config


@cache
def checker() -> Any:
    """Return pydantic's `TypeAdapter` of `Config`, which takes a tenth of a second to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def refusal(problems: list[str]) -> UserError:
    """Return one usage error for any number of problems."""
    told = [t if len(t) <= LONGEST_TOLD else f"{t[:LONGEST_TOLD]} ..." for t in problems]
    if len(problems) == 1:
        return usage_error(told[0])
    more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    return usage_error(f"{len(told)} options are wrong", "\n".join(told[:MOST_TOLD] + more))


def describe_problems(items: list[dict[str, Any]]) -> list[str]:
    """Say pydantic's problems in a person's words, one for each key.

    A key of several types has a problem for each of them: what is allowed is joined by "or".
    """
    allowed: dict[str, list[str]] = {}
    endings: dict[str, str] = {}
    for item in items:
        if item["type"] == "json_invalid":
            return ["a value is nested too deeply, or its text is not valid UTF-8"]
        path = [str(part) for part in item["loc"] if str(part) not in UNION_TAGS]
        key = ".".join(path)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            allowed[unknown_key(path)] = []
            continue
        text = str(item["msg"]).replace("Input should be ", "must be ")
        text = text.replace("Field required", "is missing")
        text = text[0].lower() + text[1:]
        earlier = allowed.setdefault(f"{key} ".lstrip(), [])
        if text not in earlier:
            earlier.append(text.removeprefix("must be ") if earlier else text)
        if item["type"] != "missing":
            endings[f"{key} "] = shown_value(item)
    return [f"{key}{' or '.join(texts)}{endings.get(key, '')}" for key, texts in allowed.items()]


def shown_value(item: dict[str, Any]) -> str:
    """Say what was given in place of what is allowed, and the nearest of the allowed words."""
    value = item["input"]
    words = re.findall("'([^']+)'", str(item.get("ctx", {}).get("expected", "")))
    close = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {close[0]}?" if close else ""
    return f", not {shortened(value)}{hint}"


def shortened(value: Any) -> str:
    """Return a value as Python writes it, cut to what a line can bear."""
    text = repr(value)
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text


def unknown_key(path: list[str]) -> str:
    """Say that a key does not exist, which one was probably meant, and which ones do exist."""
    siblings = keys_of(path[:-1])
    prefix = f"{path[0]}." if len(path) > 1 else ""
    known = [prefix + name for name in siblings] + all_keys()
    close = difflib.get_close_matches(path[-1], [k.split(".")[-1] for k in known], n=1)
    full = list(dict.fromkeys(k for k in known if close and k.split(".")[-1] == close[0]))
    nearest = [k for k in full if prefix and k.startswith(prefix)] or full
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"unknown key {'.'.join(path)}{hint} (known here: {', '.join(siblings)})"


def all_keys() -> list[str]:
    """List every dotted key that a recipe may hold."""
    keys = []
    for name, hint in get_type_hints(Config).items():
        if is_dataclass(hint):
            keys += [f"{name}.{item.name}" for item in fields(hint)]
        elif name == "stages":
            keys += [f"stages.{item.name}" for item in fields(Stage)]
    return keys


def keys_of(path: list[str]) -> list[str]:
    """List the keys that are allowed inside the table at `path`."""
    if not path:
        return [item.name for item in fields(Config)]
    return [key.split(".")[1] for key in all_keys() if key.split(".")[0] == path[0]]


def combination_problems(config: Config) -> list[str]:
    """Find options that contradict each other or would have no effect."""
    found = []
    if config.backbone.weights is not None and not config.backbone.pretrained:
        found.append("--weights and --no-pretrained contradict each other: leave one out")
    if config.backbone.starts_random and config.head_trains_first:
        found.append(
            "stages: the first one trains only the head on random frozen blocks (--no-pretrained "
            'or from scratch); start with unfreeze = "all"'
        )
    if config.data.allow_outside and config.data.manifest is None:
        found.append("data.allow_outside has no effect without data.manifest: leave it out")
    if config.augment.level == "none" and config.augment.views:
        found.append("augment.views has no effect with augment.level = none: leave one out")
    if config.stages and config.stages[0].if_improving:
        found.append("stages: the first stage cannot depend on the one before (if_improving)")
    found += network_problems(config.backbone, config.head, config.training.whole_batch_size)
    found += memory_problems(config) + path_problems(config)
    found += batchnorm_problems(config.backbone, config.training.batchnorm)
    found += optimization_problems(config) + budget_problems(config)
    for key, check in (
        ("cache.budget", lambda: parse_bytes(config.cache.budget)),
        ("data.background", lambda: parse_colour(config.data.background)),
    ):
        try:
            check()
        except ValueError as error:
            found.append(f"{key} {error}")
    return found + predict_problems(config.predict) + pretraining_problems(config.pretraining)


def path_problems(config: Config) -> list[str]:
    """Find paths that no system call takes; braces of shards stand for many, each of them short."""
    paths = {
        f"{section}.{name}": str(value)
        for section in get_type_hints(Config)
        if is_dataclass(getattr(config, section))
        for name, value in vars(getattr(config, section)).items()
        if isinstance(value, Path) and "{" not in str(value)
    }
    return [f"{key} {why}: {shortened(p)}" for key, p in paths.items() if (why := path_problem(p))]


def memory_problems(config: Config) -> list[str]:
    """Find options that save memory where there is none to save."""
    training, found = config.training, []
    parts = training.accumulate if isinstance(training.accumulate, int) else 1
    if parts > 1 and 2 * parts > training.whole_batch_size:
        found.append(
            f"training.accumulate = {parts} needs a batch of {2 * parts} or more, two pictures for "
            f"each part; training.batch_size is {training.batch_size}"
        )
    if training.checkpoint_activations and config.trains_head_alone:
        found.append("training.checkpoint_activations has no effect: only the head trains")
    return found


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
