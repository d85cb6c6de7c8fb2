"""Memory that a training step frees and the next one needs again."""

import ctypes

KEPT_BYTES = 2**30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next; False where it cannot.

    A step on a CPU takes and frees gigabytes in large pieces, which glibc gives back to the system
    each time, and fresh pages have to be cleared: up to a third of a step. The process
    stays as large as its largest step. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all(
        [mallopt(M_MMAP_THRESHOLD, KEPT_BYTES), mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1)]
    )
