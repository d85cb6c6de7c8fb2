"""Who a process is, and what two of them make of a batch that lies in both.

This file is also the program that the two processes run.
"""

import os
import socket
import subprocess
import sys

import transferkit.timm_import  # noqa: F401  # isort: skip
import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from transferkit import processes
from transferkit.backbones.synchronized import gathered, synchronize_
from transferkit.errors import UserError

OWN = (3, 5)
"""Pictures of each process: shares need not be equal."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}, (2, 3, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, (0, 1, 0)),  # the batch script itself
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            (1, 2, 0),
        ),
    ],
)
def test_place_is_what_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    for names in processes.VARIABLES:
        for name in (*names, processes.SLURM_STEP):
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = processes.place()
    assert (found.rank, found.count, found.local) == expected
    assert processes.is_first() == (expected[0] == 0)


def test_the_first_machine_of_a_slurm_job_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NODELIST", "node[07-09,12]")
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    processes.set_master_address()
    assert os.environ.pop("MASTER_ADDR") == "node07"
    assert os.environ.pop("MASTER_PORT") == "19567"


@pytest.mark.parametrize(("rank", "count"), [("2", "2"), ("x", "2"), ("0", "0")])
def test_an_impossible_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, rank: str, count: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(UserError, match=f"RANK={rank}, WORLD_SIZE={count}") as caught:
        processes.place()
    assert caught.value.exit_code == 2


def test_one_process_has_everything() -> None:
    items = list(range(5))
    rows = torch.ones(3)
    assert processes.share(items) is items
    assert gathered(rows) is rows
    assert processes.weight(2, 8) == 1
    assert processes.from_first(len, items) == 5
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronize_(network)
    assert type(network[0]) is nn.BatchNorm2d


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


def test_two_processes_see_their_batches_as_one() -> None:
    port = str(free_port())
    running = []
    for rank in range(2):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        running.append(
            subprocess.Popen(
                [sys.executable, __file__], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)


def network() -> nn.Sequential:
    """Layers with batch norms of torch and of timm, in double precision, seeded."""
    torch.manual_seed(0)
    found = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchNormAct2d(4, momentum=0.3),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.Flatten(),
        nn.LazyLinear(6),
        nn.BatchNorm1d(6, affine=False),
    )
    found(torch.zeros(2, 3, 8, 8))
    return found


def contrast(outputs: torch.Tensor) -> torch.Tensor:
    """A loss that is no mean over pictures: it compares every pair of them."""
    return torch.logsumexp(outputs @ outputs.T / 3, dim=1).mean()


def compare_with_one_process() -> None:
    images = torch.randn(sum(OWN), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alone, shared = network(), network()
    contrast(alone(images)).backward()
    with processes.joined():
        synchronize_(shared)
        assert type(shared[1]) is not BatchNormAct2d
        start = sum(OWN[: processes.rank()])
        own = images[start : start + OWN[processes.rank()]]
        loss = contrast(gathered(shared(own))) * processes.weight(len(own), sum(OWN))
        loss.backward()
        parameters = list(shared.parameters())
        processes.average_(p.grad for p in parameters if p.grad is not None)
        for mine, other in zip(parameters, alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
        for mine, other in zip(shared.buffers(), alone.buffers(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        talk()


def talk() -> None:
    rank = processes.rank()
    assert processes.from_all("ab"[rank]) == ["a", "b"]
    assert processes.agreed(rank) == 0
    assert processes.from_first(processes.count) == 1  # meanwhile it works alone
    assert list(processes.share(np.arange(5))) == [[0, 1], [2, 3, 4]][rank]
    weight = processes.weight(OWN[rank], sum(OWN))
    assert processes.mean({"x": 8.0 * rank}, weight) == {"x": 5.0}  # (3 * 0 + 5 * 8) / 8
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, rank + 1.0)
    processes.copy_first_(layer)
    assert bool((layer.weight == 1).all())

    def failing() -> None:
        raise UserError("no", exit_code=2)

    with pytest.raises(UserError, match="no"):
        processes.from_first(failing)


if __name__ == "__main__":
    compare_with_one_process()
