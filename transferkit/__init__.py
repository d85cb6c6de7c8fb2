"""transferkit: transfer learning for image classification, from the command line and from Python.

`transferkit.finetune`, `load`, `choose`, `labels` and `Run` are those of
`transferkit.verbs.interface`; it is imported when one of them is asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "choose", "finetune", "labels", "load"]


def __getattr__(name: str) -> Any:
    """Return a name of the Python interface."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'transferkit' has no attribute {name!r}")
    return getattr(importlib.import_module("transferkit.verbs.interface"), name)
