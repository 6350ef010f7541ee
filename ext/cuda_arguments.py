"""How tensors travel to the CUDA kernels: as a pointer and a stride an axis, and whether they can be read in fours."""

from math import gcd

from torch import Tensor

FOUR = 4  # neighbours that a thread reads at once

_ABSENT = (0, 0, 0, 0)
_MISSING_AXES = ((0, 0, 0), (0, 0), (0,), ())


def tensor(given: Tensor | None) -> tuple[int, ...]:
    """`Tensor` of common.cuh: the data and three strides, zeros for the axes that there are not."""
    if given is None:
        return _ABSENT
    strides = given.stride()
    return given.data_ptr(), *strides, *_MISSING_AXES[len(strides)]


def pointer(given: Tensor | None) -> int:
    """Where the data lies; 0 for None."""
    return 0 if given is None else given.data_ptr()


def in_fours(given: Tensor | None, count: int = FOUR) -> bool:
    """Whether every row of a tensor can be read `count` neighbours at a time; an absent one can."""
    if given is None:
        return True
    strides = given.stride()
    if strides[-1] != 1 or given.shape[-1] % count or given.data_ptr() % min(16, count * given.itemsize):
        return False
    return gcd(count, *strides[:-1]) == count


def refuse_complex(A: Tensor) -> None:
    """Raise ValueError for a state space that the kernels don't have."""
    if A.is_complex():
        raise ValueError("backend 'cuda' has no complex A; backend='numba-cuda' has")
