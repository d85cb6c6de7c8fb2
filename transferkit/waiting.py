"""How threads wait for each other: soon asleep, so that other programs can have the core meanwhile.

A thread that has finished its share of an operation waits for the others. By default it spins, for
milliseconds, as the next operation is usually near. Beside other busy programs it then spins on the
very core that the thread it waits for would need, at every operation anew.
"""

import os

SPINS = "1000"
"""Of libgomp, the OpenMP of torch: some 10 µs, then the thread sleeps. Its default is 300,000."""
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""By each of these a user says how OpenMP's threads shall wait."""
ONNX_RUNTIME = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
"""Entries of a session's configuration."""


def sleep_soon() -> None:
    """Let OpenMP's threads sleep soon, unless the user has chosen how they wait.

    Only a library that is loaded afterwards reads it. How many threads there are stays as it is:
    their number changes the order of sums, and a resumed run has to end with the same bits.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
