"""How this process keeps memory that torch frees on the CPU, so that the next tensor need not fault it in again."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER = -1
KEPT = 2**30  # bytes; larger tensors still go back to the system one by one


def keep_freed_memory() -> bool:
    """Have glibc's malloc reuse blocks of up to KEPT bytes; say whether it does (elsewhere nothing happens).

    By default a freed tensor of a few megabytes goes back to the system, and the kernel clears the pages of the next
    one: about a microsecond for each 4 KiB, which is as long as the scan itself takes to fill them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(TRIM_THRESHOLD, NEVER) and mallopt(MMAP_THRESHOLD, KEPT))
