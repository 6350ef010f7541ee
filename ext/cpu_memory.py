"""Memory for large results of the CPU kernels, used again as soon as the tensor that had it is gone.

malloc gives the memory of a large tensor back to the system, and for the next one the kernel clears every page anew:
that takes as long as the scan needs to fill them. So a few blocks are kept here, in huge pages.
"""

import math
import mmap
import sys
import threading

import torch
from torch import Tensor

LARGE = 2**22  # bytes of a result that is worth a block
ROUND = 2**21  # a huge page
KEPT = 2**29  # bytes of blocks that may lie idle
FREE = 3  # references to a block that no tensor has: the list's, the loop's and that of the call that counts

_blocks: list[mmap.mmap] = []
_choosing = threading.Lock()


def fresh(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor, contiguous; small ones, and all where there is no Linux, are torch's own."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or not sys.platform.startswith("linux"):
        return torch.empty(shape, dtype=dtype)
    with _choosing:
        # The tensor keeps its block alive by a reference, which goes with the last of its views.
        return torch.frombuffer(_block(-(-size // ROUND) * ROUND), dtype=dtype, count=math.prod(shape)).view(shape)


def _block(size: int) -> mmap.mmap:
    """An idle block of about this size, or a new one, for which the oldest idle ones make room."""
    idle = [block for block in _blocks if sys.getrefcount(block) == FREE]
    for block in idle:
        if size <= len(block) <= size + size // 4:
            return block
    while idle and sum(map(len, idle)) > KEPT - size:
        _blocks.remove(idle.pop(0))
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_HUGEPAGE)
    if size <= KEPT:
        _blocks.append(made)
    return made
