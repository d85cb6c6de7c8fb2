"""Import torchvision and timm: quickly, and with a torch of another build.

torchvision's CUDA wheel (the package index has no CPU wheel for Linux) fails to import next to a
CPU-only torch, because it registers fake kernels for operators that its extension library could
not define. Nothing here uses those operators: declaring their signatures is enough for the pure
Python parts (transforms, layers) that timm imports.

Both import modules that commands rarely use, which takes as long as all other imports of
`predict`: torch's compiler with sympy, to mark a few functions as not to be compiled and to query
it in an operator on boxes; and the client of the model hub. Here these load on first use.
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
    """Import torchvision, declaring the operators it lacks; return their names (usually none).

    Raises torchvision's RuntimeError for any failure other than a missing operator of SIGNATURES.
    """
    missing: list[str] = []
    while True:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            named = [n for n in SIGNATURES if f"torchvision::{n} does not exist" in str(error)]
            if not named or named[0] in missing:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(SIGNATURES[named[0]])
            _declared.append(library)
            missing.extend(named)
        else:
            return tuple(missing)


class Placeholder(ModuleType):
    """Defines a few of a package's names; looking up any other one loads the package instead.

    module: it replaces a module within a package, not a package.
    """

    def __init__(self, name: str, attributes: dict[str, Any], module: bool = False) -> None:
        super().__init__(name)
        vars(self).update(attributes)
        if not module and (spec := importlib.util.find_spec(name)) is not None:
            self.__path__ = list(spec.submodule_search_locations or ())
        self._before = sys.modules.get(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system only probes for it
            raise AttributeError(name)
        remove_placeholders()
        return getattr(importlib.import_module(self.__name__), name)


def remove_placeholders() -> None:
    """Restore `sys.modules` without the placeholders; the next import loads the real modules."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, Placeholder):
            del sys.modules[name]
            if module._before is not None:
                sys.modules[name] = module._before


def deferred(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports the module when called, and calls its function `name`."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


def disable(function: Callable[..., Any], *options: Any, **more: Any) -> Callable[..., Any]:
    """Return the function, to be marked as not compiled when it is first called."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        marked = importlib.import_module("torch._dynamo").disable(function, *options, **more)
        return marked(*arguments, **named)

    return call


@contextmanager
def placeholders() -> Iterator[None]:
    """Replace torch's compiler and the hub's client during imports, unless they are loaded."""
    names = {"is_compile_supported": deferred("torch._dynamo.utils", "is_compile_supported")}
    replaced = {}
    if "torch._dynamo" not in sys.modules:
        replaced["torch._dynamo"] = Placeholder("torch._dynamo", {"disable": disable})
        replaced["torch._dynamo.utils"] = Placeholder("torch._dynamo.utils", names, module=True)
    if "huggingface_hub.hf_api" not in sys.modules:
        errors = vars(importlib.import_module("huggingface_hub.errors"))
        names = {name: deferred("huggingface_hub", name) for name in HUB_CALLS}
        replaced["huggingface_hub"] = Placeholder("huggingface_hub", names)
        names = {name: errors[name] for name in HUB_ERRORS}
        replaced["huggingface_hub.utils"] = Placeholder("huggingface_hub.utils", names)
    sys.modules.update(replaced)
    try:
        yield
    finally:
        remove_placeholders()


with placeholders():
    declare_missing_operators()
    importlib.import_module("timm")
