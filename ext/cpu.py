"""The scan of the CPU backend: prepares tensors for the Numba kernels, compiles these, and runs them on threads."""

import functools
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core.caching import FunctionCache
from torch import Tensor

from . import cpu_kernels, cpu_pieces, cpu_steps, cpu_tiles, lane_math, lanes
from .cpu_threads import share_out

SLAB = 64  # channels that a thread takes along a sequence, at least where there are as many: rows lie across pages
PARTS = 32  # partial sums of the backward pass, about, and so threads that have something to do
GRAIN = 2**18  # states worth handing to another thread

# The kernels' arguments: arrays of rank n, Rn real, Sn of states, Qn and Tn the same in double precision, In integer;
# an integer i, a flag b.
_INPUTS = "R3 R3 S2 S3 S3 R1 R3 R1 S3 b b b b"
_SIGNATURES = {
    cpu_kernels.scan_forward: f"i i i I2 {_INPUTS} R3 S3",
    cpu_kernels.scan_backward: f"i i i I2 {_INPUTS} R3 S3 R3 R3 T3 S4 S4 Q2 R3 Q2 S3 i i",
}

_log = logging.getLogger(__package__)
_compiling = threading.Lock()


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.scan_forward`, in the memory of its results and a few rows of each tile."""
    if (ends := cpu_pieces.bounds(u, cu_seqlens)) is not None:
        inputs = u, delta, A, B, C, D, z, delta_bias
        return cpu_pieces.forward(scan_forward, ends, inputs, initial_state, delta_softplus, discretisation)
    work, spans = _working_dtype(A), _spans(u, cu_seqlens)
    inputs = _inputs(work, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretisation)
    y, final = torch.empty(u.shape, dtype=work.to_real()), torch.zeros(len(spans), *A.shape, dtype=work)
    d, sequences = u.shape[2], len(spans)
    # Here the slabs change no bit, so there may be narrow ones where threads would be idle.
    threads = torch.get_num_threads()
    slabs = max(_slabs(d, sequences, 4 * threads), min(-(-d // _width(work)), threads // max(1, sequences)))
    groups = _groups(work, d, slabs)
    units = -(-d // (groups * _width(work))) * sequences
    states = u.numel() * A.shape[1]
    _run(cpu_kernels.scan_forward, work, units, states, groups, spans, *inputs, y.numpy(), final.numpy())
    return y.to(u.dtype), final.to(A.dtype)


def scan_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
) -> tuple[Tensor | None, ...]:
    """As `reference.scan_backward`; states are computed again, from one kept every CHUNK steps of the tile at hand."""
    if (ends := cpu_pieces.bounds(u, cu_seqlens)) is not None:
        inputs = u, delta, A, B, C, D, z, delta_bias
        return cpu_pieces.backward(
            scan_forward, scan_backward, ends, dy, dfinal_state, inputs, initial_state, delta_softplus, discretisation
        )
    work, spans = _working_dtype(A), _spans(u, cu_seqlens)
    across = max(1, min(len(spans), PARTS))
    down = _slabs(u.shape[2], across, PARTS)
    groups = _groups(work, u.shape[2], down)
    inputs = _inputs(work, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretisation)
    sums = _gradient_sums(work, u, A, B, C, len(spans), down, across)
    arrays = _array(dy, work.to_real(), 3), _array(dfinal_state, work, 3), *(part.numpy() for part in sums)
    states = u.numel() * A.shape[1]
    _run(cpu_kernels.scan_backward, work, down * across, states, groups, spans, *inputs, *arrays, down, across)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = sums
    dB, dC = (parts[0] if matrix.dim() == 2 else parts for matrix, parts in ((B, dB), (C, dC)))
    grads = (du, ddelta, *map(_ordered_sum, (dA, dB, dC, dD)), dz, _ordered_sum(dbias), dinitial)
    return tuple(map(_as_gradient, grads, (u, delta, A, B, C, D, z, delta_bias, initial_state)))


def _gradient_sums(
    work: torch.dtype, u: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int, down: int, across: int
) -> tuple[Tensor, ...]:
    """What the backward kernel fills and adds to, in the order of `cpu_kernels.Gradients`.

    The sums over l of the channels' own parameters are taken in double precision.
    """
    (b, length, d), n = u.shape, A.shape[1]
    du, ddelta, dz = (torch.empty(u.shape, dtype=work.to_real()) for _ in range(3))
    dA = torch.zeros(across, d, n, dtype=torch.promote_types(work, torch.float64))
    dD, dbias = (torch.zeros(across, d, dtype=torch.float64) for _ in range(2))
    shapes = ((1, across, d, n) if matrix.dim() == 2 else (down, b, length, n) for matrix in (B, C))
    dB, dC = (torch.zeros(shape, dtype=work) for shape in shapes)
    return du, ddelta, dA, dB, dC, dD, dz, dbias, torch.zeros(rows, d, n, dtype=work)


def _working_dtype(A: Tensor) -> torch.dtype:
    """The dtype of states inside the kernels; a complex scan is always computed in double precision."""
    return torch.complex128 if A.is_complex() else A.dtype


def _width(work: torch.dtype) -> int:
    return lanes.WIDTH if work == torch.float32 else 1


def _slabs(d: int, sequences: int, wanted: int) -> int:
    """How many slabs to part d channels into, to have about as many units of work as wanted."""
    return max(1, min(-(-d // SLAB), wanted // max(1, sequences)))


def _groups(work: torch.dtype, d: int, slabs: int) -> int:
    """Groups of lanes in each of `slabs` slabs."""
    return -(-d // (slabs * _width(work)))


def _spans(u: Tensor, cu_seqlens: Tensor | None) -> np.ndarray:
    """The batch row, begin and end of each sequence (s 3)."""
    b, length, _ = u.shape
    if cu_seqlens is None:
        return np.array([(i, 0, length) for i in range(b)], np.int64).reshape(b, 3)
    bounds = cu_seqlens.numpy().astype(np.int64)
    return np.stack([np.zeros_like(bounds[1:]), bounds[:-1], bounds[1:]], 1)


def _inputs(
    work: torch.dtype,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
) -> tuple[Any, ...]:
    """The fields of `cpu_kernels.Inputs`."""
    real = work.to_real()
    return (
        _array(u, real, 3),
        _array(delta, real, 3),
        _array(A, work, 2),
        _array(B if B.dim() == 3 else B[None], work, 3),
        _array(C if C.dim() == 3 else C[None], work, 3),
        _array(D, real, 1),
        _array(z, real, 3),
        _array(delta_bias, real, 1),
        _array(initial_state, work, 3),
        B.dim() == 2,
        C.dim() == 2,
        delta_softplus,
        discretisation == "zoh",
    )


def _array(tensor: Tensor | None, dtype: torch.dtype, rank: int) -> np.ndarray:
    """The tensor, or a copy where its dtype is another or its last axis is not contiguous; None is an empty array."""
    if tensor is None:
        return torch.empty((0,) * rank, dtype=dtype).numpy()
    tensor = tensor.detach().resolve_conj().resolve_neg().to(dtype)
    return (tensor if tensor.stride(-1) == 1 else tensor.contiguous()).numpy()


def _ordered_sum(parts: Tensor) -> Tensor:
    """The sum over the first axis, neighbours' halves first, in an order that no number of threads changes."""
    while len(parts) > 1:
        half = (len(parts) + 1) // 2
        parts[: len(parts) - half] += parts[half:]
        parts = parts[:half]
    return parts[0]


def _as_gradient(grad: Tensor, tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    grad = grad.real if grad.is_complex() and not tensor.is_complex() else grad
    return grad.to(tensor.dtype).contiguous()


def _run(kernel: Any, work: torch.dtype, units: int, states: int, *arguments: Any) -> None:
    """Have threads share out the units of a kernel's work, GRAIN states a share at least."""
    _compile(kernel, work)
    shares = max(1, min(states // GRAIN, 4 * torch.get_num_threads()))
    share_out(lambda first, last: kernel(first, last, *arguments), units, shares)


@functools.cache
def _compile(kernel: Any, work: torch.dtype) -> None:
    """Make a kernel ready for states of one dtype: from the cache on disk, or by compiling it, which takes seconds."""
    with _compiling:
        if not isinstance(kernel._cache, _Cache):
            _keep_on_disk(kernel)
        kernel.disable_compile(False)
        kernel.compile(_signature(kernel, work))
        kernel.disable_compile()


def _keep_on_disk(kernel: Any) -> None:
    try:
        kernel._cache = _Cache(kernel.py_func)
    except RuntimeError as error:  # there is no folder to write to
        _say_compiling()
        _log.info("%s", error)


def _signature(kernel: Any, work: torch.dtype) -> tuple[types.Type, ...]:
    precise = torch.promote_types(work, torch.float64)
    named = {"R": work.to_real(), "S": work, "Q": torch.float64, "T": precise, "I": torch.int64}
    dtypes = {code: _numba_type(dtype) for code, dtype in named.items()}
    plain = {"i": types.int64, "b": types.boolean}
    codes = _SIGNATURES[kernel].split()
    # Layout "A" takes any strides, so that one signature does for all.
    return tuple(plain.get(code) or types.Array(dtypes[code[0]], int(code[1]), "A") for code in codes)


def _numba_type(dtype: torch.dtype) -> types.Type:
    return numba.from_dtype(torch.empty(0, dtype=dtype).numpy().dtype)


@functools.cache
def _sources() -> str:
    """A digest of all that a kernel is compiled from."""
    files = (Path(str(module.__file__)) for module in (cpu_kernels, cpu_steps, cpu_tiles, lane_math, lanes))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


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
