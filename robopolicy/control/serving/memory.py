"""Memory that pictures pass through, kept by the process instead of given back and asked for again."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
KEPT_BYTES = 64 * 2**20
LARGEST_KEPT_BYTES = 32 * 2**20
"""What may lie free at the end of a heap, and the largest piece that is taken from one; glibc allows no larger one."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for its next message; False where its C library knows no such wish.

    A message with two pictures of 224 x 224 is 300 kB, and is copied several times on its way in. glibc gives pieces of
    that size back to the system as they are freed, and each new one is mapped page by page: measured, half of the
    time from the first byte of such a message to its answer.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
