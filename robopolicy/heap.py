"""The process's heap: keep freed memory instead of giving it back to the system and asking for it again.

glibc returns what a process frees, and maps each large new piece page by page. Work that takes and frees the same megabytes
at every step then spends much of its time in page faults: a third of a training step from pixels on a CPU, half of a
server's time from the first byte of a message with two images to its answer (both measured on a virtual machine, where
faults are expensive).
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
LARGEST_PIECE = 32 * 2**20
"""Bytes of the largest piece that is taken from the heap; glibc maps larger pieces separately."""
MOST = 2**31 - 1
"""The most bytes that glibc accepts as the amount to keep."""


def keep_freed_memory(at_most: int = MOST) -> bool:
    """Have this process keep up to `at_most` free bytes at its heap's end; False where its C library has no such setting.

    The process's peak memory stays what it was; after the peak it is not given back before the process ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no shared C library, not glibc's, or Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_PIECE) and mallopt(M_TRIM_THRESHOLD, at_most))
