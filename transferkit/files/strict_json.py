"""JSON that every reader accepts: no NaN, no infinity, nothing that only Python understands."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any


def to_plain(value: Any) -> Any:
    """Return `value` as dicts, lists, strings, finite numbers, booleans and None.

    NaN and infinities become None; paths become strings; arrays, tensors and numpy scalars become
    lists and numbers; a dataclass becomes the result of its `to_dict`, or a dict of its fields.
    Raises TypeError for anything else.
    """
    if isinstance(value, Enum):
        return to_plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((to_plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors, without importing them
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def strict_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as strict JSON text (RFC 8259) that UTF-8 can encode."""
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # a file name that is no valid UTF-8 holds lone surrogates: \udcxx is their JSON escape too
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
