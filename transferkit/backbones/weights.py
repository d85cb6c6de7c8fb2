"""Weights files: read without running what they hold, and loaded into a backbone."""

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from transferkit.backbones.fitting import Fit, Tensors, best_fit, shorten, unfilled
from transferkit.errors import UserError, usage_error
from transferkit.files.tensor_files import from_safetensors

MAX_DEPTH = 8  # of mappings and lists in a checkpoint
DANGEROUS = (
    *("os", "posix", "nt", "sys", "builtins", "__builtin__", "subprocess", "shutil", "socket"),
    *("importlib", "runpy", "ctypes", "pty", "webbrowser", "code", "types", "operator"),
)
"""Packages of which no checkpoint needs anything."""
_ARRAY, _NUMBER = (value.__reduce__()[0] for value in (np.zeros(1), np.float32(0)))
_NUMPYS = ("numpy.core.multiarray", "numpy._core.multiarray")
HARMLESS: list[Any] = [
    *((_ARRAY, f"{name}._reconstruct") for name in _NUMPYS),
    *((_NUMBER, f"{name}.scalar") for name in _NUMPYS),
    *(np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}),
    *(dict, list, tuple, set, frozenset, slice, range),
    *(bool, int, float, complex, str, bytes),
]
"""What makes numbers and arrays of numpy, and plain values of Python."""


class Inert:
    """Stands for whatever else a checkpoint holds (options, paths, whole models): does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Take any arguments; what comes is of the one class that torch lets anything be put in."""
        return Counter()


@dataclass(frozen=True)
class Held:
    """What a weights file holds.

    tensors: by their path in it, as in "teacher.backbone.conv1.weight". objects: the classes of
    what else there is, and was not made.
    """

    tensors: Tensors
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What loading a file came to. unfilled: the model's learned tensors that it has no values for.

    notices: for people.
    """

    notices: tuple[str, ...] = ()
    unfilled: tuple[str, ...] = ()


def read_tensors(path: Path) -> Held:
    """Read a safetensors file or what torch saved: a state dict, or anything with tensors in it.

    Told apart by content, not by suffix. Never runs code that a pickle holds (`weights_only`).
    Raises UserError: no such file (exit code 2); damaged, not a weights file, holds code (1).
    """
    if not path.is_file():
        is_what = "is not a file" if path.exists() else "does not exist"
        raise usage_error(f"weights file {path} {is_what}", remedy="check the path after --weights")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"weights file {path} cannot be read", error.strerror or "") from None
    if not start:
        raise UserError(f"weights file {path} is empty")
    if start[8:9] == b"{":  # 8 bytes of header length, then a JSON header
        return Held(_read_safetensors(path))
    return _read_pickled(path)


def _read_safetensors(path: Path) -> Tensors:
    try:
        return from_safetensors(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise _damaged(path, str(error)) from None


def _read_pickled(path: Path) -> Held:
    if not _has_pickle(path):
        raise _damaged(path, "it begins like neither of them")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of newer pickle protocols
            loaded, objects = _loaded(path)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        raise _not_plain(
            path,
            f"it asks for {match[1]}" if match else "its pickle has parts that tensors do not need",
        ) from None
    except Exception as error:  # a damaged pickle or archive can raise anything
        script = "it is a TorchScript archive" if "TorchScript" in str(error) else str(error)
        raise _damaged(path, script) from None
    tensors: Tensors = {}
    _collect(loaded, "", tensors)
    if not tensors and objects:
        others = [name for name in objects if not name.startswith("torch.")]
        raise _not_plain(path, f"it holds whole objects: {shorten(others or objects)}")
    if not tensors:
        raise UserError(
            f"weights file {path} holds no state dict",
            f"a state dict maps names to tensors; found {type(loaded).__name__}",
            "save one with torch.save(model.state_dict(), file)",
        )
    return Held(tensors, objects)


def _loaded(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return what torch saved, and the names of what is `Inert` in it."""
    names: list[str] = []
    with suppress(ValueError):  # of the format before torch 1.6: the names come one by one
        names = get_unsafe_globals_in_checkpoint(path)
    safe = {part[1] for part in HARMLESS if isinstance(part, tuple)}
    safe |= {f"{part.__module__}.{part.__name__}" for part in HARMLESS if isinstance(part, type)}
    inert = {name: None for name in sorted(names) if name not in safe and _is_inert(name)}
    while True:
        stands: list[Any] = [(Inert, name) for name in inert]
        try:
            with safe_globals([*stands, *HARMLESS]):
                return torch.load(path, map_location="cpu", weights_only=True), tuple(inert)
        except pickle.UnpicklingError as error:
            match = re.search(r"GLOBAL (\S+)", str(error))
            if not match or match[1] in inert or not _is_inert(match[1]):
                raise
            inert[match[1]] = None


def _is_inert(name: str) -> bool:
    """Whether something of this name may be left out of what is read, and the rest be taken."""
    module = name.rpartition(".")[0]
    return bool(module) and module.split(".")[0] not in DANGEROUS


def _not_plain(path: Path, why: str) -> UserError:
    return UserError(
        f"weights file {path} is more than plain tensors: it was not loaded",
        why,
        "loading it could run code that it holds; save the tensors alone, with "
        "torch.save(model.state_dict(), file) or as safetensors",
    )


def _has_pickle(path: Path) -> bool:
    """Whether a file begins like a zip archive or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5)


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"weights file {path} cannot be read as safetensors or as a torch state dict",
        " ".join(reason.split())[:200],
        "the file is damaged or of another kind: copy or download it again",
    )


def _collect(value: Any, path: str, tensors: Tensors, depth: int = 0) -> None:
    """Add the tensors and arrays of nested mappings and lists to `tensors`, under their paths."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size:
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_quantized and not value.is_meta:
            tensors.setdefault(path, value.detach())
    elif isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, entry in pairs:
            _collect(entry, f"{path}.{name}" if path else str(name), tensors, depth + 1)


def map_by_order(source: Tensors, target: Tensors, classifier: str) -> Tensors:
    """Give the tensors of an architecture under other names the names of `target`.

    Both list the same tensors in the same order. classifier: prefix of the source's last tensors,
    which are left out. Raises ValueError unless number, kinds (weight, bias ...) and shapes agree.
    """
    kept = {name: value for name, value in source.items() if not name.startswith(f"{classifier}.")}
    if len(kept) != len(target):
        raise ValueError(f"{len(kept)} tensors instead of {len(target)}")
    mapped: Tensors = {}
    for (name, value), (wanted, like) in zip(kept.items(), target.items(), strict=True):
        same_kind = name.rpartition(".")[2] == wanted.rpartition(".")[2]
        if not same_kind or value.shape != like.shape:
            raise ValueError(f"{name} {tuple(value.shape)} for {wanted} {tuple(like.shape)}")
        mapped[wanted] = value
    return mapped


def load_weights_file(model: nn.Module, path: Path) -> Loaded:
    """Load what fits of a weights file into a timm model without classifier.

    The tensors may lie anywhere in the file and under any prefix, see `best_fit`.
    Raises UserError when fewer than half of the model's tensors fit, or when some are not finite.
    """
    held = read_tensors(path)
    fit = best_fit(held.tensors, model)
    report = fit.report
    if 2 * len(report.matched) < report.expected:
        raise _another(path, held, fit)
    fitting = {name: fit.tensors[name] for name in report.matched}
    bad = [n for n, v in fitting.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise UserError(f"weights file {path} holds values that are not finite", shorten(bad))
    model.load_state_dict(fitting, strict=False)
    notices = [f"{path.name}: {notice}" for notice in fit.notices]
    if lines := report.lines():
        loaded = f"{path.name}: {report.fit} backbone tensors loaded"
        notices.append("; ".join([loaded, *lines]))
    return Loaded(tuple(notices), unfilled(model, report))


def _another(path: Path, held: Held, fit: Fit) -> UserError:
    """Return what to tell of a file that fits badly, with what it does hold."""
    report = fit.report
    lines = [f"{report.fit} of the backbone's tensors fit", *report.lines()]
    count = len(held.tensors)
    lines.append(f"the file holds {count} tensors: {shorten(list(held.tensors))}")
    if held.objects:
        lines.append(f"and objects, which are not loaded: {shorten(held.objects)}")
    what = "is of another architecture"
    if len(report.wrong_shape) > len(report.missing):
        what = "is of another size of this architecture"
    remedy = "name the backbone that the file was saved from with --backbone"
    if held.objects and count < report.expected / 2:
        what = "does not hold the backbone's tensors"
        remedy = "save them alone: torch.save(model.state_dict(), file)"
    return UserError(f"weights file {path} {what}", "\n".join(lines), remedy)
