"""What people type becomes values: `--set key=value`, `--stages "head:20, 1:8"`, single numbers."""

import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transferkit.config import Config, option_fields
from transferkit.config.methods import METHODS
from transferkit.errors import usage_error
from transferkit.files.foreign_files import parse_toml
from transferkit.recipes.problems import shortened


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
    unfrozen from the top; `?` runs the stage only if the one before improved validation. `solve` is
    a closed-form stage, `solve@288` one at another input size. The first one may be pretraining:
    METHOD:EPOCHS or METHOD:TIME, such as `simclr:20m`.
    """
    stages: list[dict[str, Any]] = []
    for part in text.split(","):
        body = part.strip()
        if solve := re.fullmatch(r"solve(?:\s*@\s*(\d{1,6}))?", body):
            size = {"image_size": int(solve[1])} if solve[1] else {}
            stages.append({"unfreeze": "solve", "epochs": 1, **size})
            continue
        method, _, length = (piece.strip() for piece in body.partition(":"))
        if method in METHODS:
            lasting = {"epochs": int(length)} if length.isdigit() else {"budget": length}
            stages.append({"unfreeze": method, "epochs": 1, **lasting})
            continue
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
                "each is WHAT:EPOCHS[@LR][~DECAY][?], WHAT head, all or a number; or solve[@PX]",
                'e.g. --stages "head:20@3e-3, 1:8@1e-3, 2:8, all:4?"',
            ) from None
        stages.append(stage)
    return stages


def take_pretraining(raw: dict[str, Any], typed: Iterable[str]) -> None:
    """Let a first stage of pretraining say the section's method and length, in place.

    typed: keys that a person gave to `pretrain` itself, which win.
    """
    stages = raw.get("stages")
    first = stages[0] if isinstance(stages, list) and stages else None
    if not isinstance(first, dict) or first.get("unfreeze") not in METHODS:
        return
    section = raw.setdefault("pretraining", {})
    if isinstance(section, dict) and not any(key.startswith("pretraining.") for key in typed):
        length = ("budget", "epochs") if first.get("budget") else ("epochs", "budget")
        section["method"] = first["unfreeze"]
        section[length[0]] = first.get(length[0])
        section.pop(length[1], None)


def complete_shorthands(raw: dict[str, Any]) -> None:
    """Make a list, in place, of a number that stands for a list of numbers: `dropout = 0.2`.

    And `solve.mirror` was true or false in earlier releases.
    """
    solve = raw.get("solve")
    if isinstance(solve, dict) and isinstance(solve.get("mirror"), bool):
        solve["mirror"] = "on" if solve["mirror"] else "off"
    for item in option_fields():
        section, _, name = item.key.partition(".")
        table = raw.get(section)
        if get_origin(item.annotation) is not tuple or not isinstance(table, dict):
            continue
        value = table.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            table[name] = [value]
