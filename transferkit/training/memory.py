"""Batches that fit into memory: their size, and in how many parts each is computed."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from transferkit.errors import UserError

STEPS_PER_EPOCH = 20
"""That an automatic batch size leaves at least, where there are enough pictures."""
SMALLEST, LARGEST = 8, 128
SPARE = 0.7
"""Share of the free memory that a batch may fill by estimate; the rest is for what is not seen."""
EXTRA = 1.5
"""Of what the backward pass keeps: gradients and working space come to it."""
SAMPLE = 2
MANY_CLASSES = 5000  # from which on their tables may be what fills the memory
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def batch_size_for(pictures: int) -> int:
    """Return the automatic batch size for so many training pictures: a power of two."""
    most = max(SMALLEST, pictures // STEPS_PER_EPOCH)
    return int(min(LARGEST, 2 ** int(math.log2(most))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def available_bytes(device: torch.device) -> int | None:
    """Return how much memory a device has left; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
            limits.append(max(0, int(limit) - used))
    except OSError:
        pass
    return min(limits, default=None)


def refuse_more_classes(num_classes: int, num_validation: int) -> None:
    """Raise UserError, before anything is trained, where what is measured would not fit.

    That takes tables of (K, K) counts and of (N, K) scores, several at a time, in 64 bits.
    """
    needed = 8 * (3 * num_classes**2 + 4 * num_validation * num_classes)
    available = available_bytes(torch.device("cpu"))
    if num_classes >= MANY_CLASSES and available is not None and needed > available:
        raise UserError(
            f"{num_classes:,} classes are too many for this machine",
            f"to measure them takes a table of each against each, {needed / 1e9:,.0f} GB in all; "
            f"{available / 1e9:,.0f} GB are free",
            "put classes together, leave some out with --exclude, or take a larger machine",
        )


def kept_bytes(network: nn.Module, images: Tensor) -> int:
    """Return how many bytes one forward pass keeps for its backward pass, parameters left out.

    images: (N, 3, H, W). Every storage counts once.
    """
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(images)
    assert output.requires_grad  # so that all that is kept lives until here
    return sum(sizes.values())


def fitting_parts(
    try_step: Callable[[int], None], batch_size: int, least: int, start: int = 1
) -> int:
    """Return in how many parts a batch must be computed so that a step fits into memory.

    try_step: takes a step with so many pictures, and raises what a lack of memory raises. least:
    pictures of the smallest part. start: parts to begin with; they double.
    Raises UserError where even the smallest part does not fit.
    """
    parts = start
    while True:
        size = math.ceil(batch_size / parts)
        try:
            try_step(size)
            return parts
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size <= least:
                raise UserError(
                    f"not even a batch of {size} pictures fits into memory",
                    str(error).splitlines()[0],
                    "lower --image-size, unfreeze less (--depth), or add --checkpoint-activations",
                ) from None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts *= 2


def estimated_parts(
    bytes_per_picture: int, batch_size: int, least: int, available: int | None
) -> int:
    """Return the parts, a power of two, in which a batch fits into `available` bytes by estimate.

    least: pictures of the smallest part.

    An estimate, because on a CPU the system rather ends a process than refuse it memory.
    """
    if available is None:
        return 1
    most = max(1, int(SPARE * available / (EXTRA * max(1, bytes_per_picture))))
    parts = 1
    while batch_size // (2 * parts) >= least and math.ceil(batch_size / parts) > most:
        parts *= 2
    return parts


def shares(count: int, parts: int, least: int = 1) -> list[slice]:
    """Cut a batch of `count` pictures into at most `parts` near-equal parts, none under `least`."""
    parts = max(1, min(parts, count // max(1, least)))
    ends = [round(count * i / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]
