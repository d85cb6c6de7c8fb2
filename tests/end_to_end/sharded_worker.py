"""One of the processes that train with --strategy fsdp: `python sharded_worker.py JOBS FOUND`.

JOBS: a pickled list of `Job`. FOUND: where process n writes what it saw, `FOUND-n.json`.
"""

import json
import pickle
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from transferkit import processes
from transferkit.config import Config
from transferkit.errors import UserError
from transferkit.events import EpochEnded, Event
from transferkit.runs.folder import RunFolder
from transferkit.training import loop, sharded
from transferkit.training.divergence import Diverged
from transferkit.training.optimizers import OPTIMIZERS, make_optimizer, set_rates
from transferkit.training.updates import Updater
from transferkit.verbs import finetune as verb

DRAWN = ("curves", "learning_rates", "confusion", "inside", "reliability")


@dataclass(frozen=True)
class Job:
    """A run into `out`.

    stop: the epoch of the run, from 1, after which it is interrupted, copied and resumed.
    diverges: the number of the looked-at loss that is to be infinite.
    """

    config: Config
    out: str
    stop: int = 0
    diverges: int = 0


class Small(nn.Module):
    """A backbone of two blocks, one with fewer rows than processes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.backbone = nn.Sequential(block, nn.Linear(5, 1))
        self.head = nn.Linear(1, 3)

    def forward(self, inputs: torch.Tensor) -> Any:
        """Return (N, 3) of (N, 4)."""
        return self.head(self.backbone(inputs))


def quiet(patch: pytest.MonkeyPatch) -> None:
    """Draw and report nothing, which takes longer than the runs."""
    for name in DRAWN:
        patch.setattr(verb, name, lambda *_: None)
    patch.setattr(verb, "write_report", lambda *_: None)
    patch.setattr(RunFolder, "save_plot", lambda *_: None)


def work(job: Job, patch: pytest.MonkeyPatch) -> None:
    """Do one run."""
    quiet(patch)
    seen, looked = [0], [0]
    checked = loop.checked

    def show(event: Event) -> None:
        seen[0] += isinstance(event, EpochEnded)
        if isinstance(event, EpochEnded) and seen[0] == job.stop:
            raise KeyboardInterrupt

    def once(loss: float, step: int) -> float:
        looked[0] += 1
        if looked[0] == job.diverges:
            raise Diverged(float("inf"), step)
        return checked(loss, step)

    patch.setattr(loop, "checked", once)
    if not job.stop:
        verb.finetune(job.config, Path(job.out), show)
        return
    with pytest.raises(UserError, match="interrupted"):
        verb.finetune(job.config, Path(job.out), show)
    processes.from_first(shutil.copytree, job.out, f"{job.out}-left")
    verb.resume(Path(job.out), show)


def held(updater: Updater) -> list[int]:
    """Return how many numbers of what learns this process holds, how many there are, and the units
    that they are shared out by.
    """
    learning: list[Any] = [p for p in updater.classifier.parameters() if p.requires_grad]
    units = sum(isinstance(m, FSDPModule) for m in updater.network.modules())
    return [sum(p.to_local().numel() for p in learning), sum(map(torch.numel, learning)), units]


def drift_of(name: str) -> float:
    """Return how far two steps of an optimiser lie from those without shards."""
    torch.manual_seed(0)
    plain, inputs, labels = Small(), torch.randn(6, 4), torch.arange(6) % 3
    twin, _ = sharded.twins(plain, plain)
    sharded.shard_(twin, twin, ["0", "1"], torch.device("cpu"))
    ours = [{"params": list(twin.parameters()), "multiplier": 1.0, "weight_decay": 0.01}]
    theirs = [{"params": list(plain.parameters()), "multiplier": 1.0, "weight_decay": 0.01}]
    own = slice(0, 2) if processes.rank() == 0 else slice(2, 6)
    share = processes.weight(len(labels[own]), len(labels))
    optimizers = [make_optimizer(name, groups, {}, fused=False) for groups in (ours, theirs)]
    for _ in range(2):
        for model, part, weight, optimizer in (
            (twin, own, share, optimizers[0]),
            (plain, slice(None), 1.0, optimizers[1]),
        ):
            set_rates(optimizer, 1e-2)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(inputs[part]), labels[part]) * weight).backward()
            optimizer.step()
    pairs = zip(twin.parameters(), plain.parameters(), strict=True)
    return max(float((p.full_tensor() - q).detach().abs().max()) for p, q in pairs)


def main() -> None:
    jobs = pickle.loads(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(1)
    sizes: list[list[int]] = []
    updater_of = loop.updater_of

    def counted(*arguments: Any) -> Updater:
        updater = updater_of(*arguments)
        sizes.append(held(updater))
        return updater

    with processes.joined():
        drifts = {name: drift_of(name) for name in OPTIMIZERS}
        loop.updater_of = counted
        for job in jobs:
            with pytest.MonkeyPatch.context() as patch:
                work(job, patch)
        found = {"sizes": sizes, "drifts": drifts}
        Path(f"{sys.argv[2]}-{processes.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
