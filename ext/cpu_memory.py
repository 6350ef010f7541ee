"""Memory for large results of the CPU kernels, used again as soon as the tensor that had it is gone.

malloc gives the memory of a large tensor back to the system, and for the next one the kernel clears every page anew:
that takes as long as the scan needs to fill them. So a few blocks are kept here, in huge pages.
"""

import contextlib
import math
import mmap
import sys
import threading

import torch
from torch import Tensor

LARGE = 2**22  # bytes of a result that is worth a block
ROUND = 2**21  # a huge page
KEPT = 2**29  # bytes of blocks that may lie idle

_blocks: list[mmap.mmap] = []
_choosing = threading.Lock()


def _counts(blocks: list[mmap.mmap]) -> list[int]:
    """How many references each block has, those of this count included."""
    return [sys.getrefcount(block) for block in blocks]


# Of a block that no tensor has; interpreters count their own references differently.
(FREE,) = _counts([mmap.mmap(-1, mmap.PAGESIZE)])


def fresh(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor, contiguous; small ones, and all where there is no Linux, are torch's own."""
    count = math.prod(shape)
    size = -(-count * dtype.itemsize // ROUND) * ROUND
    if count * dtype.itemsize >= LARGE and sys.platform.startswith("linux"):
        # Where there is no memory torch says so, with the size.
        with _choosing, contextlib.suppress(OSError):
            # The tensor keeps its block alive by a reference, which goes with the last of its views.
            return torch.frombuffer(_block(size), dtype=dtype, count=count).view(shape)
    return torch.empty(shape, dtype=dtype)


def _block(size: int) -> mmap.mmap:
    """An idle block of about this size, or a new one; the oldest other idle ones go until KEPT bytes are left."""
    idle = [i for i, count in enumerate(_counts(_blocks)) if count == FREE]
    fitting = next((i for i in idle if size <= len(_blocks[i]) <= size + size // 4), None)
    found = _new(size) if fitting is None else _blocks[fitting]
    others = [i for i in idle if i != fitting]
    room = KEPT - (size if fitting is None else 0)
    gone = set()
    while len(gone) < len(others) and sum(len(_blocks[i]) for i in others[len(gone) :]) > room:
        gone.add(others[len(gone)])
    _blocks[:] = [block for i, block in enumerate(_blocks) if i not in gone]
    if fitting is None and size <= KEPT:
        _blocks.append(found)
    return found


def _new(size: int) -> mmap.mmap:
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Only a hint, which not every kernel knows.
    with contextlib.suppress(OSError, AttributeError):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made
