"""Problems of a configuration in a person's words, all at once, with the nearest spelling."""

import difflib
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from transferkit.config import Config, Stage
from transferkit.config.methods import METHODS
from transferkit.errors import UserError, usage_error

MAX_SHOWN = 80  # characters of a wrong value
MOST_TOLD, LONGEST_TOLD = 7, 500
"""Problems that one message lists, and characters of each."""
UNION_TAGS = ("constrained-int", "int", "constrained-float", "NoneType")
"""What pydantic adds to a key to say which member of a union it tried, besides `literal[...]`."""


def refusal(problems: list[str]) -> UserError:
    """Return one usage error for any number of problems."""
    told = [t if len(t) <= LONGEST_TOLD else f"{t[:LONGEST_TOLD]} ..." for t in problems]
    if len(problems) == 1:
        return usage_error(told[0])
    more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    return usage_error(f"{len(told)} options are wrong", "\n".join(told[:MOST_TOLD] + more))


def is_tag(part: str) -> bool:
    """Whether a part of a location names a member of a union: `int`, `literal['auto']`."""
    return part in UNION_TAGS or part.startswith("literal[")


def describe_problems(items: list[dict[str, Any]]) -> list[str]:
    """Say pydantic's problems in a person's words, one for each key.

    A key of several types has a problem for each of them: what is allowed is joined by "or".
    """
    allowed: dict[str, list[str]] = {}
    endings: dict[str, str] = {}
    for item in items:
        if item["type"] == "json_invalid":
            return ["a value is nested too deeply, or its text is not valid UTF-8"]
        path = [str(part) for part in item["loc"] if not is_tag(str(part))]
        key = ".".join(path)
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            allowed[unknown_key(path)] = []
            continue
        text = str(item["msg"]).replace("Input should be ", "must be ")
        text = text.replace("Field required", "is missing")
        if path[-1:] == ["unfreeze"] and f"'{next(iter(METHODS))}'" in text:
            text = "a method of pretraining"
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
