"""Make torchvision importable beside a torch build that its compiled operators do not fit.

A CPU-only torch next to torchvision's CUDA wheel (the package index has no CPU wheel for Linux)
fails on import, because torchvision registers fake kernels for operators that its extension
library could not define. Nothing here uses those operators: declaring their signatures is enough
for the parts in pure Python (transforms, layers) that timm imports.
Import this module before timm, torchvision or torchmetrics.
"""

import importlib

import torch

SIGNATURES = {
    name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms")
}
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


declare_missing_operators()
