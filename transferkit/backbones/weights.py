"""Reading weights files and mapping their tensors onto a backbone's."""

import argparse
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from transferkit.errors import UserError, usage_error
from transferkit.files.tensor_files import from_safetensors

Tensors = dict[str, Tensor]
NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
MAX_PREFIXES = 3  # one inside the other, as in "module.model."
SHOWN = 5  # names of each kind in a report


@dataclass(frozen=True)
class WeightReport:
    """How a file's tensors fit a backbone: names of the backbone's tensors, except `unexpected`."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    @property
    def expected(self) -> int:
        """The number of tensors that the backbone has."""
        return len(self.matched) + len(self.missing) + len(self.wrong_shape)

    @property
    def fit(self) -> str:
        """How many of the backbone's tensors fit, as in "10 of 294"."""
        return f"{len(self.matched)} of {self.expected}"

    def lines(self) -> list[str]:
        """Return one line for each kind of misfit; none when everything fits."""
        kinds = {
            "missing in the file": self.missing,
            "of another shape": self.wrong_shape,
            "unknown to the backbone": self.unexpected,
        }
        return [
            f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {kind}: {shorten(names)}"
            for kind, names in kinds.items()
            if names
        ]


def shorten(names: Sequence[str]) -> str:
    """Join the first few names, and say how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file or a torch state dict, also one nested in a training checkpoint.

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
        return _read_safetensors(path)
    return _read_state_dict(path)


def _read_safetensors(path: Path) -> Tensors:
    try:
        return from_safetensors(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise _damaged(path, str(error)) from None


def _read_state_dict(path: Path) -> Tensors:
    if not _has_pickle(path):
        raise _damaged(path, "it begins like neither of them")
    harmless: list[Any] = [
        argparse.Namespace
    ]  # holds the options in the checkpoints of timm's train.py
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # torch warns of newer pickle protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"weights file {path} is more than plain tensors: it was not loaded",
            f"it asks for {found[1]}" if found else "its pickle has parts that tensors do not need",
            "loading it could run code that it holds; save the tensors alone, with "
            "torch.save(model.state_dict(), file) or as safetensors",
        ) from None
    except Exception as error:  # a damaged pickle or archive can raise anything
        script = "it is a TorchScript archive" if "TorchScript" in str(error) else str(error)
        raise _damaged(path, script) from None
    tensors = _state_dict_in(loaded)
    if not tensors:
        raise UserError(
            f"weights file {path} holds no state dict",
            f"a state dict maps names to tensors; found {type(loaded).__name__}",
        )
    return tensors


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


def _state_dict_in(loaded: Any) -> Tensors:
    """Return the tensors of a state dict, or of the first one nested under a usual key."""
    if not isinstance(loaded, Mapping):
        return {}
    for key in NESTED_UNDER:
        if isinstance(loaded.get(key), Mapping):
            return _state_dict_in(loaded[key])
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


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


def compare(source: Tensors, target: Tensors) -> WeightReport:
    """Compare names and shapes; batch-norm counters that old files lack are not missed."""
    needed = [name for name in target if name in source or not _is_counter(name)]
    return WeightReport(
        matched=tuple(n for n in needed if n in source and source[n].shape == target[n].shape),
        missing=tuple(n for n in needed if n not in source),
        unexpected=tuple(n for n in source if n not in target),
        wrong_shape=tuple(n for n in needed if n in source and source[n].shape != target[n].shape),
    )


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def load_weights_file(model: nn.Module, path: Path) -> list[str]:
    """Load what fits of a weights file into a timm model without classifier; return notices.

    Prefixes of wrappers are removed, and timm's own converter for the architecture is used where
    more fits with it (original layouts, position embeddings of another picture size).
    Raises UserError when fewer than half of the model's tensors fit, or when some are not finite.
    """
    target = model.state_dict()
    source = _without_classifier(_best_fit(read_tensors(path), model, target), model)
    report = compare(source, target)
    if 2 * len(report.matched) < report.expected:
        raise UserError(
            f"weights file {path} is of another architecture",
            "\n".join([f"{report.fit} of the backbone's tensors fit", *report.lines()]),
            "name the backbone that the file was saved from with --backbone",
        )
    fitting = {name: source[name] for name in report.matched}
    bad = [n for n, v in fitting.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise UserError(f"weights file {path} holds values that are not finite", shorten(bad))
    model.load_state_dict(fitting, strict=False)
    if not report.lines():
        return []
    loaded = f"{path.name}: {report.fit} backbone tensors loaded"
    return ["; ".join([loaded, *report.lines()])]


def _best_fit(source: Tensors, model: nn.Module, target: Tensors) -> Tensors:
    """Return the renaming of the source's tensors that fits the target best."""

    def fit(tensors: Tensors) -> tuple[int, int]:
        return len(compare(tensors, target).matched), sum(name in target for name in tensors)

    renamed = [source]
    for _ in range(MAX_PREFIXES):
        renamed.append({_strip(name): value for name, value in renamed[-1].items()})
    best = max(renamed, key=fit)
    return max(best, _convert(source, model), _convert(best, model), key=fit)


def _strip(name: str) -> str:
    """Remove one wrapper's prefix from a tensor's name, if it has one."""
    return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)


def _convert(source: Tensors, model: nn.Module) -> Tensors:
    """Run timm's checkpoint converter for the model's architecture, if there is one and it can."""
    convert: Callable[..., Any] | None = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", None
    )
    if convert is None:
        return {}
    try:
        return dict(convert(dict(source), model))
    except Exception:  # made for known files only: on others it may fail in any way
        return {}


def _without_classifier(source: Tensors, model: nn.Module) -> Tensors:
    """Leave out the tensors of the classifier, which a backbone has none of."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names))
    own = model.state_dict()
    return {n: v for n, v in source.items() if n in own or not n.startswith(prefixes or ("\0",))}
