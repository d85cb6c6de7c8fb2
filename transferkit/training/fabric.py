"""Lightning Fabric on the configured device, and how memory on a CPU is kept between steps."""

import ctypes
from typing import Any

import torch

from transferkit.config import Config
from transferkit.errors import usage_error

KEPT_BYTES = 2**30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next; False where it cannot.

    A step on a CPU takes and frees gigabytes in large pieces, which glibc gives back to the system
    each time, and fresh pages have to be cleared: up to a third of a step. The process
    stays as large as its largest step. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all(
        [mallopt(M_MMAP_THRESHOLD, KEPT_BYTES), mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1)]
    )


def make_fabric(config: Config) -> Any:
    """Start Lightning Fabric on the configured device with its arithmetic."""
    import logging

    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    wanted: str = config.device.accelerator
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted in available and not available[wanted]:
        raise usage_error(f"--device {wanted}: this machine has none", "", "use --device auto")
    if wanted == "auto":
        wanted = next((name for name, there in available.items() if there), "cpu")
    if wanted == "cpu":
        keep_freed_memory()
    precision: str = config.device.precision
    if precision == "auto":
        precision = "bf16" if wanted == "cuda" and torch.cuda.is_bf16_supported() else "32"
    names: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    # one device for each process, whatever started it: `processes` exchanges what must be
    devices: Any = [torch.cuda.current_device()] if wanted == "cuda" else 1
    fabric = Fabric(
        accelerator=wanted,
        devices=devices,
        precision=names[precision],
        plugins=LightningEnvironment(),
    )
    fabric.launch()
    return fabric
