"""Makes the CPU kernels ready to be called: compiled once a dtype, kept on disk, keyed by all their sources."""

import functools
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import numba
import torch
from numba import types
from numba.core.caching import FunctionCache

# The files beside this one that kernels are compiled from.
SOURCES = (
    "cpu_chunks.py",
    "cpu_conv_kernels.py",
    "cpu_kernels.py",
    "cpu_norm_kernels.py",
    "cpu_step_kernels.py",
    "cpu_tiles.py",
    "lane_math.py",
    "lanes.py",
)

_log = logging.getLogger(__package__)
_compiling = threading.Lock()


@functools.cache
def ready(kernel: Any, codes: str, work: torch.dtype) -> None:
    """Make a kernel ready for states of one dtype: from the cache on disk, or by compiling it, which takes seconds.

    `codes` are its arguments: arrays of rank n, Rn real, Sn of states, Qn and Tn the same in double precision, In
    integer; an integer i, a number f, a flag b.
    """
    with _compiling:
        if not isinstance(kernel._cache, _Cache):
            _keep_on_disk(kernel)
        kernel.disable_compile(False)
        kernel.compile(_signature(codes, work))
        kernel.disable_compile()


def _keep_on_disk(kernel: Any) -> None:
    try:
        kernel._cache = _Cache(kernel.py_func)
    except RuntimeError as error:  # there is no folder to write to
        _say_compiling()
        _log.info("%s", error)


def _signature(codes: str, work: torch.dtype) -> tuple[types.Type, ...]:
    precise = torch.promote_types(work, torch.float64)
    named = {"R": work.to_real(), "S": work, "Q": torch.float64, "T": precise, "I": torch.int64}
    dtypes = {code: _numba_type(dtype) for code, dtype in named.items()}
    plain = {"i": types.int64, "f": types.float64, "b": types.boolean}
    # Layout "A" takes any strides, so that one signature does for all.
    return tuple(plain.get(code) or types.Array(dtypes[code[0]], int(code[1]), "A") for code in codes.split())


def _numba_type(dtype: torch.dtype) -> types.Type:
    return numba.from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)


@functools.cache
def _sources() -> str:
    """A digest of all that kernels are compiled from."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()


class _Cache(FunctionCache):
    """Numba's cache on disk, which knows one source file a kernel, keyed by them all; and it says when it misses."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return *super()._index_key(sig, codegen), _sources()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None:
            _say_compiling()
        return found


def _say_compiling() -> None:
    _log.warning("compiling a CPU kernel, once (about 5 s)")
