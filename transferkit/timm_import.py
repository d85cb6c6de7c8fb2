"""Import torchvision and timm, as quickly as possible and beside a torch that does not fit.

A CPU-only torch next to torchvision's CUDA wheel (the package index has no CPU wheel for Linux)
fails on import, because torchvision registers fake kernels for operators that its extension
library could not define. Nothing here uses those operators: declaring their signatures is enough
for the parts in pure Python (transforms, layers) that timm imports.

Both load much that commands rarely use, which takes as long as all else that `predict` imports:
torch's compiler with sympy, to mark a few functions as not to be compiled and to ask, in an
operator on boxes, whether there is a compiler; and the client of the model hub, to call it. Each
is loaded when that happens.
Import this module before timm, torchvision or torchmetrics.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

SIGNATURES = {
    name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms")
}
HUB_CALLS = ("HfApi", "hf_hub_download", "model_info")
HUB_ERRORS = ("EntryNotFoundError", "RepositoryNotFoundError")
_declared: list[torch.library.Library] = []  # a Library withdraws its operators when collected


def declare_missing_operators() -> tuple[str, ...]:
    """Import torchvision, declaring the operators it misses; return their names (usually none).

    Raises RuntimeError, torchvision's own, for a failure that is not a missing known operator.
    """
    missing: list[str] = []
    while True:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            found = [n for n in SIGNATURES if f"torchvision::{n} does not exist" in str(error)]
            if not found or found[0] in missing:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(SIGNATURES[found[0]])
            _declared.append(library)
            missing.extend(found)
        else:
            return tuple(missing)


class StandIn(ModuleType):
    """Takes a package's place and knows a few of its names; asked for another, it makes way.

    module: it is a module in a package, not a package itself.
    """

    def __init__(self, name: str, known: dict[str, Any], module: bool = False) -> None:
        super().__init__(name)
        vars(self).update(known)
        if not module and (spec := importlib.util.find_spec(name)) is not None:
            self.__path__ = list(spec.submodule_search_locations or ())
        self._before = sys.modules.get(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system only looks whether there is one
            raise AttributeError(name)
        make_way()
        return getattr(importlib.import_module(self.__name__), name)


def make_way() -> None:
    """Put back what was there before the stand-ins; the next import loads the modules."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, StandIn):
            del sys.modules[name]
            if module._before is not None:
                sys.modules[name] = module._before


def late(module: str, name: str) -> Callable[..., Any]:
    """Return a function that loads the module and calls its function of this name."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


def disable(function: Callable[..., Any], *options: Any, **more: Any) -> Callable[..., Any]:
    """Return the function marked as not to be compiled, once it is called."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        marked = importlib.import_module("torch._dynamo").disable(function, *options, **more)
        return marked(*arguments, **named)

    return call


@contextmanager
def stood_in_for() -> Iterator[None]:
    """Let imports do without torch's compiler and the hub's client, if these are not loaded yet."""
    names = {"is_compile_supported": late("torch._dynamo.utils", "is_compile_supported")}
    stand_ins = {}
    if "torch._dynamo" not in sys.modules:
        stand_ins["torch._dynamo"] = StandIn("torch._dynamo", {"disable": disable})
        stand_ins["torch._dynamo.utils"] = StandIn("torch._dynamo.utils", names, module=True)
    if "huggingface_hub.hf_api" not in sys.modules:
        errors = vars(importlib.import_module("huggingface_hub.errors"))
        names = {name: late("huggingface_hub", name) for name in HUB_CALLS}
        stand_ins["huggingface_hub"] = StandIn("huggingface_hub", names)
        names = {name: errors[name] for name in HUB_ERRORS}
        stand_ins["huggingface_hub.utils"] = StandIn("huggingface_hub.utils", names)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        make_way()


with stood_in_for():
    declare_missing_operators()
    importlib.import_module("timm")
