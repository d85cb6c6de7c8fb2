import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transferkit.backbones.waiting import CHOICES, SPINS, sleep_soon

CONSOLE_SCRIPT = Path(sys.executable).with_name("transferkit")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WAYS = {
    "module": (sys.executable, "-m", "transferkit"),
    "script": (str(CONSOLE_SCRIPT),),
    "torchrun": (*TORCHRUN, "-m", "transferkit"),
}


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [
        ({}, SPINS),
        ({"OMP_NUM_THREADS": "1"}, SPINS),  # torchrun sets it
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
        ({"KMP_BLOCKTIME": "0"}, None),
    ],
)
def test_what_the_user_chose_stays(
    chosen: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(chosen))
    sleep_soon()
    assert os.environ == {**chosen, **({} if spins is None else {"GOMP_SPINCOUNT": spins})}


@pytest.mark.skipif(
    not list(Path(torch.__file__).with_name("lib").glob("libgomp*")),
    reason="this torch has another OpenMP",
)
@pytest.mark.parametrize(
    ("way", "chosen", "heard"),
    [
        ("module", {}, [SPINS]),
        ("script", {}, [SPINS]),
        ("torchrun", {}, [SPINS, SPINS, "300000"]),  # the last is that of the launcher
        ("module", {"GOMP_SPINCOUNT": "77"}, ["77"]),
        ("module", {"OMP_WAIT_POLICY": "PASSIVE"}, ["0"]),
    ],
)
def test_openmp_hears_of_it_however_a_command_is_started(
    way: str, chosen: dict[str, str], heard: list[str], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [*WAYS[way], "predict", "nowhere", "picture.png"],
        cwd=tmp_path,
        env={**environment, **chosen, "OMP_DISPLAY_ENV": "verbose"},  # libgomp says what it took
        capture_output=True,
        text=True,
    )
    assert "nowhere" in done.stderr
    assert sorted(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == heard
