"""How OpenMP's threads wait for each other: they soon sleep, which frees the core for others.

A thread that has finished its share of an operation waits for the other threads. By default it
spins for milliseconds, because the next operation is usually near. On a busy machine it then
occupies the very core that the thread it waits for needs, again at every operation.
"""

import os

SPINS = "1000"
"""For libgomp, torch's OpenMP: spin some 10 µs, then sleep. The default is 300,000."""
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Environment variables by which users choose how OpenMP's threads wait."""
ONNX_RUNTIME = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
"""Configuration entries of an ONNX Runtime session."""


def sleep_soon() -> None:
    """Make OpenMP's threads sleep soon, unless the user has chosen how they wait.

    Only libraries loaded afterwards read it. The number of threads is left alone: it changes the
    order of sums, and a resumed run has to end with the same bits.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
