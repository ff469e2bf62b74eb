"""Settings of the process's heap: reuse freed memory instead of returning it to the system.

glibc returns freed memory to the system, and maps large new blocks page by page. A program that allocates and frees the same
megabytes at every step then spends much of its time in page faults: a third of a training step on images on a CPU, and half
of a server's time from the first byte of a message with two images to its answer (both measured on a virtual machine, where
page faults are expensive).
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""
LARGEST_BLOCK = 32 * 2**20
"""Size of the largest block that is allocated on the heap [bytes]; glibc maps larger blocks separately."""
MAX_KEPT_BYTES = 2**31 - 1
"""Largest amount of memory to keep that glibc accepts [bytes]."""


def keep_freed_memory(at_most: int = MAX_KEPT_BYTES) -> bool:
    """Keep up to `at_most` free bytes at the end of this process's heap; returns False if its C library has no such setting.

    The process's peak memory is unchanged, but memory is not returned to the system before the process ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no shared C library, not glibc's, or Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(M_TRIM_THRESHOLD, at_most))
