"""Which tensors of a weights file are a backbone's: by path, prefix, layout and channels."""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

Tensors = dict[str, Tensor]
SHOWN = 5  # names of each kind in a report
MAX_PREFIXES = 30  # tried on a file, those under which most fits
PREFERRED = {"teacher", "ema", "averaged", "swa"}
AVOIDED = {"student", "momentum", "target", "k"}
"""Words in the names of copies of one network: an average is what is used, but in contrastive
learning, where it only gives the keys (`encoder_k`, `momentum_encoder`)."""
NEUTRAL = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
STATISTICS = ("running_mean", "running_var")
ADAPTED = (1, 3, 4)  # numbers of input channels: grey, RGB, RGB with another


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


@dataclass(frozen=True)
class Fit:
    """The tensors of a file under a backbone's names, how they fit, and what to tell of it."""

    tensors: Tensors
    report: WeightReport
    notices: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, int, int]:
        """More is better: tensors that fit, their entries, names that the target has."""
        report = self.report
        entries = sum(self.tensors[name].numel() for name in report.matched)
        return len(report.matched), entries, len(report.matched) + len(report.wrong_shape)


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


def best_fit(source: Tensors, model: nn.Module) -> Fit:
    """Return the tensors that fit a model best, of all that lie under one prefix of the file.

    Every prefix is tried, as it is and through timm's converter for the architecture (original
    layouts, position embeddings of another picture size). Among equals an average (teacher, EMA)
    goes first. Another number of input channels is adapted, see `adapted`.
    """
    target = model.state_dict()
    source = without_wrappers(source, target)
    fits = {
        prefix: _fit(
            {n.removeprefix(prefix): v for n, v in source.items() if n.startswith(prefix)},
            model,
            target,
        )
        for prefix in prefixes(source, target)
    }

    def rank(prefix: str) -> tuple[Any, ...]:
        return (*fits[prefix].rank, preference(prefix), -len(prefix))

    chosen = max(fits, key=rank)
    fit = fits[chosen]
    notices = list(fit.notices)
    equal = [p for p in fits if fits[p].rank == fit.rank and not chosen.startswith(p)]
    if equal:
        others = shorten([prefix.rstrip(".") for prefix in equal])
        notices.insert(0, f"took {chosen.rstrip('.')} (there are {others}, too)")
    return replace(fit, notices=tuple(notices))


def without_wrappers(source: Tensors, target: Tensors) -> Tensors:
    """Take out what compiling and sharding put inside names, as in "layer1._orig_mod.0.weight"."""
    words = {part for name in target for part in name.split(".")}

    def plain(name: str) -> str:
        parts = name.split(".")
        return ".".join(p for p in parts if p in words or not (p.startswith("_") or p == "module"))

    renamed: Tensors = {}
    for name, value in source.items():
        renamed.setdefault(plain(name), value)
    return renamed


def prefixes(source: Tensors, target: Tensors) -> list[str]:
    """Return the prefixes under which the target may lie in the source, the likeliest first.

    Those that stand before the target's own names, then those with enough tensors below them.
    """
    named: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for name in source:
        cuts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        below.update(name[:cut] for cut in cuts)
        named.update(name[:cut] for cut in cuts if name[cut:] in target)
    likely = [prefix for prefix, _ in named.most_common(MAX_PREFIXES)]
    large = [prefix for prefix, number in below.most_common() if 2 * number >= len(target)]
    return list(dict.fromkeys([*likely, *large[:MAX_PREFIXES], ""]))


def preference(prefix: str) -> int:
    """Return 1 for a copy of a network that is meant to be used, -1 for one that is not, else 0."""
    words = set(re.findall("[a-z]+", re.sub("([A-Z])", r" \1", prefix).lower()))
    return bool(words & PREFERRED) - bool(words & AVOIDED)


def _fit(view: Tensors, model: nn.Module, target: Tensors) -> Fit:
    """Return how tensors fit, as they are or converted, whichever fits more."""
    fit = _adapted_fit(view, target)
    if not fit.report.matched or fit.report.missing or fit.report.wrong_shape:
        fit = max(fit, _adapted_fit(_convert(view, model), target), key=lambda f: f.rank)
    tensors = _without_classifier(fit.tensors, model)
    return Fit(tensors, compare(tensors, target), fit.notices)


def _adapted_fit(view: Tensors, target: Tensors) -> Fit:
    tensors, notices = dict(view), []
    for name in compare(view, target).wrong_shape:
        have, wanted = view[name].shape, target[name].shape
        same = len(have) == len(wanted) == 4 and have[:1] + have[2:] == wanted[:1] + wanted[2:]
        if same and have[1] in ADAPTED and wanted[1] in ADAPTED:
            tensors[name] = adapted(view[name], wanted[1])
            notices.append(f"{name} adapted from {have[1]} to {wanted[1]} channels")
    return Fit(tensors, compare(tensors, target), tuple(notices))


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Return a first layer's weight (D, C, H, W) for another number of input channels.

    For one channel the others are summed; else they are repeated and scaled, so that grey pictures
    give the same maps. Source: `timm.models.adapt_input_conv`, which goes from 3 channels.
    """
    have = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, math.ceil(channels / have), 1, 1)[:, :channels]
    return (repeated.float() * (have / channels)).to(weight.dtype)


def _convert(source: Tensors, model: nn.Module) -> Tensors:
    """Run timm's checkpoint converter for the model's architecture, if there is one and it can."""
    convert: Callable[..., Any] | None = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", None
    )
    if convert is None:
        return {}
    try:
        return {n: v for n, v in convert(dict(source), model).items() if isinstance(v, Tensor)}
    except Exception:  # made for known files only: on others it may fail in any way
        return {}


def _without_classifier(source: Tensors, model: nn.Module) -> Tensors:
    """Leave out the tensors of the classifier, which a backbone has none of."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names))
    target = model.state_dict()
    return {n: v for n, v in source.items() if n in target or not n.startswith(prefixes or ("\0",))}


def unfilled(model: nn.Module, report: WeightReport) -> tuple[str, ...]:
    """Return what a model should have learned and a file has no values for.

    Buffers but the statistics of batch norms are computed, not learned. A norm without statistics
    is no loss where the file has none of it: it starts by changing nothing.
    """
    lacks = {*report.missing, *report.wrong_shape}
    names: list[str] = []
    for path, module in model.named_modules():
        trained = [f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)]
        statistics = [f"{path}.{n}" for n in STATISTICS if hasattr(module, n)]
        if not (isinstance(module, NEUTRAL) and lacks.issuperset(trained)):
            names += [name for name in (*trained, *statistics) if name in lacks]
    return tuple(names)
