"""Distributed processes: rank, world size, and the collective operations between them.

torchrun or SLURM's srun starts them and says by environment variables how many there are. With one
process, everything here is a no-op. Collectives must be called by all processes in the same order.
torch is imported only when there is more than one process.
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
"""Timeout of collectives: rank 0 may validate alone while the others wait."""
GRACE_S = 3.0
"""How long the other ranks hold back an error that rank 0 is likely to report, too."""


class LostProcess(UserError):
    """Another process of the job has ended."""


@dataclass(frozen=True)
class Place:
    """The `rank` of this process among `count` (world size); `local`: its rank on the machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


@dataclass
class Connection:
    """joined: the process group is initialized. alone: this process works alone meanwhile."""

    joined: bool = False
    alone: bool = False


_connection = Connection()


def place() -> Place:
    """Read rank and world size from the environment. Raises a usage error if they are invalid."""
    for names in VARIABLES:
        required = [os.environ.get(name) for name in names[:2]]
        if None in required or (names[0].startswith("SLURM") and SLURM_STEP not in os.environ):
            continue
        values = [*required, os.environ.get(names[2], "0")]
        try:
            rank, count, local = (int(str(value)) for value in values)
        except ValueError:
            rank, count, local = 0, 0, 0
        if not 0 <= rank < count:
            pairs = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise usage_error(f"the environment has no valid rank and number of processes: {pairs}")
        return Place(rank, count, local)
    return Place()


def is_first() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return place().rank == 0


def count() -> int:
    """Return how many processes share the work at the moment; 1 inside of `from_first`."""
    return place().count if _connection.joined and not _connection.alone else 1


def rank() -> int:
    """Return this process's rank among those that share the work at the moment."""
    return place().rank if count() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Initialize the process group for the duration of the context.

    The backend is gloo for CPU tensors, NCCL for CUDA. Raises UserError if the others cannot be
    reached.
    """
    here = place()
    if here.count == 1:
        yield
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.is_available()
    if cuda:
        # srun may make a single device visible to each process
        torch.cuda.set_device(here.local % torch.cuda.device_count())
    set_master_address()
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
    _connection.joined = True
    try:
        yield
        with _exchange():
            distributed.barrier()
        distributed.destroy_process_group()
    finally:
        _connection.joined = False


def set_master_address() -> None:
    """Set MASTER_ADDR and MASTER_PORT under srun, which gives only the list of nodes."""
    if "RANK" in os.environ or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return
    from lightning_fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    port = 15_000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10_000
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(port))


def from_first(make: Callable[..., T], *arguments: Any) -> T:
    """Call `make` on rank 0 alone and broadcast its result, pickled, to all processes.

    A UserError is raised in all of them.
    """
    if count() == 1:
        return make(*arguments)
    from torch import distributed

    result_and_error: list[Any] = [None, None]
    if is_first():
        _connection.alone = True
        try:
            result_and_error[0] = make(*arguments)
        except UserError as error:
            result_and_error[1] = error
        finally:
            _connection.alone = False
    with _exchange():
        distributed.broadcast_object_list(result_and_error, src=0)
    if result_and_error[1] is not None:
        raise result_and_error[1]
    result: T = result_and_error[0]
    return result


def agreed(value: T) -> T:
    """Return rank 0's value (broadcast)."""
    return from_first(_same, value)


def _same(value: T) -> T:
    return value


def from_all(value: T) -> list[T]:
    """Return the values of all processes, by rank (all-gather)."""
    if count() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * count()
    with _exchange():
        distributed.all_gather_object(values, value)
    return values


def share(items: Any) -> Any:
    """Return this process's contiguous slice of a sequence, all slices being about equal."""
    if count() == 1:
        return items
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


def weight(local: float, total: float) -> float:
    """Return the weight of a mean over `local` of `total` items in the mean over processes."""
    return 1.0 if count() == 1 else local * count() / total


def mean(values: Mapping[str, float], weight: float) -> dict[str, float]:
    """Return the weighted mean of named figures over all processes, see `weight`."""
    if count() == 1:
        return dict(values)
    import torch

    local = torch.tensor([value * weight / count() for value in values.values()]).double()
    return dict(zip(values, sum_(local).tolist(), strict=True))


def average_(gradients: Iterable["Tensor"]) -> None:
    """Average gradients over all processes, in place."""
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
    """Broadcast rank 0's parameters and buffers to all processes, in place."""
    if count() == 1:
        return
    from torch import distributed

    for tensor in module.state_dict().values():
        values = tensor.detach().contiguous()
        with _exchange():
            distributed.broadcast(values, src=0)
        tensor.copy_(values)


def sum_(tensor: "Tensor") -> "Tensor":
    """Sum a tensor over all processes (all-reduce), in place and without gradients; return it."""
    if count() == 1:
        return tensor
    from torch import distributed

    with _exchange():
        distributed.all_reduce(tensor)
    return tensor


def wait_quietly(error: UserError) -> bool:
    """Whether this process should print an error: one line for the whole job is enough.

    Rank 0 prints at once. The others wait a little, because an error of rank 0 ends the job
    meanwhile. A lost process is reported by rank 0, or by rank 1 if rank 0 is the lost one.
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
    """Turn the error of a collective when another process is gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(
            "another process of this job has ended",
            str(error).splitlines()[0][:200],
            "its own message and the launcher's log say why",
        ) from None
