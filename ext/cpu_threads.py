"""Shares the CPU kernels' work out to torch's own OpenMP threads, so that the two never fight for the cores.

A second pool of threads, Numba's say, would find torch's still spinning on the cores that it needs, and the other way
round; and Numba's OpenMP layer wants a library that slim images, macOS and Windows do not have.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

SMALLEST = sys.float_info.min

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_parallel_in: int | None = None  # the process whose threads have run


def share_out(work: Callable[[int, int], None], units: int, shares: int) -> None:
    """Call `work(first, last)` for as many consecutive ranges of range(units) as there are shares, each once.

    Runs on `torch.get_num_threads()` threads at the most, which take the next range as they become free; `work` must
    let go of the interpreter's lock to gain anything. Raises what `work` raised, and RuntimeError in a forked child.
    """
    shares = min(shares, units)
    threads = min(torch.get_num_threads(), shares)
    ranges = iter([(units * i // shares, units * (i + 1) // shares) for i in range(shares)])
    errors: list[BaseException] = []

    def take(_: Any = None) -> None:
        try:
            with _denormals_flushed():
                for first, last in ranges:
                    work(first, last)
        except BaseException as error:
            errors.append(error)

    if threads > 1:
        _refuse_a_forked_child()
        _on_a_team(take, threads)
    else:
        take()
    if errors:
        raise errors[0]


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Have this thread take numbers below the normal range as zeros: a state that dies out would cost it tenfold."""
    before = SMALLEST / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _on_a_team(take: Callable[..., None], threads: int) -> None:
    parallel = _openmp()
    if parallel is not None:
        parallel(_Task(take), None, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(take, range(threads)))


@functools.cache
def _openmp() -> Any:
    """GOMP_parallel of the OpenMP library that torch has loaded, which GNU's, LLVM's and Intel's have; None without."""
    try:
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


def _refuse_a_forked_child() -> None:
    global _parallel_in
    _parallel_in = _parallel_in or os.getpid()
    if _parallel_in != os.getpid():
        raise RuntimeError(
            "this process was forked after its parent ran CPU kernels in parallel, and OpenMP's threads do not survive "
            "a fork; start workers with multiprocessing's 'spawn' method, or call torch.set_num_threads(1) in them"
        )
