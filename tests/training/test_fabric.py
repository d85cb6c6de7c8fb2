import ctypes
import subprocess
import sys

import pytest

from transferkit.training import fabric as freed_memory
from transferkit.training.fabric import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from transferkit.training.fabric import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step = [torch.ones(2**24) for _ in range(8)]  # 8 times 64 MB
        del step
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
if not keep_freed_memory():
    sys.exit(3)
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the library of GNU")
def test_memory_that_was_freed_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this version gives it back")
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 5 * 8 * 2**24 * 4 / 2**21  # pages of 2 MB at most
    assert kept < given_back / 2


def test_another_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
