"""The list of backbones: what there is, how large, and whether the weights are at hand."""

import fnmatch
import warnings
from dataclasses import dataclass
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from transferkit.backbones.create import find_embedded, pretrained_config, resolve_name
from transferkit.backbones.hub import cached_weights

MAX_COUNTED = (
    30  # models built, without memory, to count parameters: about a tenth of a second each
)
FILLS = (
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_),
    *(Tensor.mul_, Tensor.add_, Tensor.clamp_),
)
"""What initialisers do to a tensor, in place."""


@dataclass(frozen=True)
class ModelInfo:
    """One backbone of the list.

    parameters: millions, with the ImageNet classifier; None when there were too many to count.
    offline: "embedded" (an installed package has the weights), "cached" (downloaded before), "no".
    """

    name: str
    parameters: float | None
    input_px: int
    license: str
    offline: str


def list_models(pattern: str = "") -> list[ModelInfo]:
    """Return the timm models whose name matches, in natural order; maybe none.

    pattern: a glob if it has one of *?[, else a part of the name, of any letter case; names with a
    pretrained tag are searched when it has a dot.
    """
    wanted = pattern.removeprefix("timm/").lower()
    glob = wanted if any(mark in wanted for mark in "*?[") else f"*{wanted}*"
    names = timm.list_pretrained() if "." in wanted else timm.list_models()
    matching = [name for name in names if fnmatch.fnmatchcase(name.lower(), glob)]
    counted = len(matching) <= MAX_COUNTED
    return [describe(name, count=counted) for name in matching]


def describe(name: str, count: bool = True) -> ModelInfo:
    """Return what is known about one timm model; `count` its parameters if wanted."""
    config = pretrained_config(name)
    embedded = find_embedded(name)
    if embedded is not None and embedded.path() is not None:
        offline = "embedded"
    else:
        offline = "cached" if cached_weights(config) else "no"
    return ModelInfo(
        name=name,
        parameters=count_parameters(name) if count else None,
        input_px=int(config["input_size"][-1]),
        license=str(config.get("license") or "unknown"),
        offline=offline,
    )


def count_parameters(name: str) -> float:
    """Return a model's parameters in millions, with its own classifier, without their memory."""
    return sum(parameter.numel() for parameter in without_memory(name).parameters()) / 1e6


class Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where they would be filled in place.

    Without memory there is nothing to fill, and torch loads its compiler to find that out.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call what is called, but for what fills."""
        given = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__ or func in FILLS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def least_parameters(name: str) -> int:
    """Return how many parameters timm's model of a name has, without allocating them.

    Without position embeddings, whose number goes with the size of the input.
    """
    model = without_memory(resolve_name(name), num_classes=0)
    return sum(p.numel() for n, p in model.named_parameters() if "pos" not in n)


def without_memory(name: str, **options: Any) -> nn.Module:
    """Return timm's model of a name on the meta device: shapes alone. options: of timm."""
    with torch.device("meta"), Unfilled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, **options)
    return model
