"""A program in two processes at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """What two processes printed and returned."""

    codes: list[int]
    out: list[str]
    err: list[str]


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def as_by_srun(*arguments: object, program: tuple[str, ...] = ("-m", "transferkit")) -> Ended:
    """Run a command in two processes with the variables of SLURM."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = str(opened.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(
                SLURM_PROCID=str(rank),
                SLURM_NTASKS="2",
                SLURM_LOCALID=str(rank),
                SLURM_STEP_ID="0",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    codes = [process.returncode for process in running]
    return Ended(codes, [out for out, _ in said], [err for _, err in said])
