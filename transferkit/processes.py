"""Several processes that do one job: which of them this is, and how they agree.

They are started by torchrun or by SLURM's srun, whose environment variables say how many there are.
With one process nothing in here does anything. Every function that exchanges something is called
by all processes in the same order. torch is imported only when there is somebody to talk to.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from transferkit.errors import UserError, usage_error

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
SLURM_STEP = "SLURM_STEP_ID"
"""Only srun sets it: a batch script itself is one process, whatever the job's number of tasks."""
WAIT = timedelta(hours=6)
"""For the slowest of the others: the first process may validate while they wait."""
GRACE_S = 3.0
"""How long a process other than the first keeps an error to itself, which all of them may have."""


class LostProcess(UserError):
    """Another process of the job has ended."""


@dataclass(frozen=True)
class Place:
    """Where this process stands: number `rank` of `count`, `local` among those of its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


@dataclass
class Talk:
    """Whether this process is in touch with the others, and whether it works alone for a while."""

    joined: bool = False
    alone: bool = False


_talk = Talk()


def place() -> Place:
    """Return what the environment says. Raises a usage error where that is no place."""
    for names in VARIABLES:
        found = [os.environ.get(name) for name in names[:2]]
        if None in found or (names[0].startswith("SLURM") and SLURM_STEP not in os.environ):
            continue
        values = [*found, os.environ.get(names[2], "0")]
        try:
            rank, count, local = (int(str(value)) for value in values)
        except ValueError:
            rank, count, local = 0, 0, 0
        if not 0 <= rank < count:
            said = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise usage_error(f"the environment names no place among processes: {said}")
        return Place(rank, count, local)
    return Place()


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return place().rank == 0


def count() -> int:
    """Return how many processes share the work at this moment; 1 also inside of `from_first`."""
    return place().count if _talk.joined and not _talk.alone else 1


def rank() -> int:
    """Return this process's number among those that share the work at this moment, from 0."""
    return place().rank if count() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Be in touch with the other processes of the job for as long as the context lasts.

    Tensors on a CPU go through gloo, on CUDA through NCCL. Raises UserError where the others do not
    come.
    """
    here = place()
    if here.count == 1:
        yield
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(here.local % torch.cuda.device_count())  # srun may show only its own
    name_the_first()
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=here.rank,
            world_size=here.count,
            timeout=WAIT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {here.rank} of {here.count} cannot reach the first one",
            str(error).splitlines()[0][:200],
            "check MASTER_ADDR and MASTER_PORT, and that all processes were started",
        ) from None
    _talk.joined = True
    try:
        yield
        with _exchange():
            distributed.barrier()
        distributed.destroy_process_group()
    finally:
        _talk.joined = False


def name_the_first() -> None:
    """Set MASTER_ADDR and MASTER_PORT where srun started the processes: it names only machines."""
    if "RANK" in os.environ or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return
    from lightning_fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    port = 15_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))


def from_first(make: Callable[..., T], *arguments: Any) -> T:
    """Let the first process alone do something, and return to all of them what came of it.

    A UserError goes to all of them as well. What `make` returns is pickled.
    """
    if count() == 1:
        return make(*arguments)
    from torch import distributed

    found: list[Any] = [None, None]
    if is_first():
        _talk.alone = True
        try:
            found[0] = make(*arguments)
        except UserError as error:
            found[1] = error
        finally:
            _talk.alone = False
    with _exchange():
        distributed.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    value: T = found[0]
    return value


def agreed(value: T) -> T:
    """Return the first process's value."""
    return from_first(_same, value)


def _same(value: T) -> T:
    return value


def from_all(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if count() == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * count()
    with _exchange():
        distributed.all_gather_object(found, value)
    return found


def share(items: Any) -> Any:
    """Return this process's part of something that can be sliced, all parts being about equal."""
    if count() == 1:
        return items
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


def weight(own: float, whole: float) -> float:
    """Return what a mean over `own` of `whole` counts, so that the mean over processes is right."""
    return 1.0 if count() == 1 else own * count() / whole


def mean(values: Mapping[str, float], weight: float) -> dict[str, float]:
    """Return the mean of named figures over all processes, each weighted, see `weight`."""
    if count() == 1:
        return dict(values)
    import torch

    own = torch.tensor([value * weight / count() for value in values.values()]).double()
    return dict(zip(values, sum_(own).tolist(), strict=True))


def average_(gradients: Iterable["Tensor"]) -> None:
    """Replace gradients by their means over all processes, in place."""
    if count() == 1:
        return
    import torch

    kinds: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for alike in kinds.values():
        flat = sum_(torch.cat([gradient.reshape(-1) for gradient in alike])) / count()
        parts = flat.split([gradient.numel() for gradient in alike])
        for gradient, part in zip(alike, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def copy_first_(module: "nn.Module") -> None:
    """Give all processes the first one's parameters and buffers, in place."""
    if count() == 1:
        return
    from torch import distributed

    for tensor in module.state_dict().values():
        values = tensor.detach().contiguous()
        with _exchange():
            distributed.broadcast(values, src=0)
        tensor.copy_(values)


def sum_(tensor: "Tensor") -> "Tensor":
    """Add up a tensor over all processes, in place and without gradients; return it."""
    if count() == 1:
        return tensor
    from torch import distributed

    with _exchange():
        distributed.all_reduce(tensor)
    return tensor


def wait_quietly(error: UserError) -> bool:
    """Whether this process may tell a person about an error: one line for all is enough.

    The first does at once. The others wait a little: an error of the first one, too, ends the job
    meanwhile. That a process is lost is told by the first one, or by the second where that is it.
    """
    here = place()
    if here.rank == 0:
        return True
    if isinstance(error, LostProcess):
        return here.rank == 1
    try:
        time.sleep(GRACE_S)
    except KeyboardInterrupt:
        return False
    return error.exit_code != 130


@contextmanager
def _exchange() -> Iterator[None]:
    """Turn what an exchange says when another process is gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(
            "another process of this job has ended",
            str(error).splitlines()[0][:200],
            "what it said, and what the launcher says of it, tells why",
        ) from None
