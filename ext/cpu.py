"""The scan of the CPU backend: prepares tensors for the Numba kernels and runs these on threads."""

from typing import Any

import torch
from torch import Tensor

from . import cpu_kernels, cpu_pieces
from .cpu_arrays import array, ordered_sum, spans_of, width, working_dtype
from .cpu_compile import ready
from .cpu_memory import fresh
from .cpu_threads import share_out

SLAB = 64  # channels that a thread takes along a sequence, at least where there are as many: rows lie across pages
PARTS = 32  # partial sums of the backward pass, about, and so threads that have something to do
GRAIN = 2**20  # states worth waking another thread for

# The kernels' arguments, as `cpu_compile.ready` reads them.
_INPUTS = "R3 R3 S2 S3 S3 R1 R3 R1 S3 b b b b"
_FORWARD = f"i i i I2 {_INPUTS} R3 S3"
_BACKWARD = f"i i i I2 {_INPUTS} R3 S3 R3 R3 T3 S4 S4 Q2 R3 Q2 S3 i i"


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
    if (pieces := cpu_pieces.cut(u, delta, A, delta_bias, cu_seqlens, delta_softplus)) is not None:
        inputs = u, delta, A, B, C, D, z, delta_bias
        return cpu_pieces.forward(scan_forward, pieces, inputs, initial_state, delta_softplus, discretisation)
    work, spans = working_dtype(A), spans_of(u, cu_seqlens)
    inputs = _inputs(work, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretisation)
    y, final = fresh(*u.shape, dtype=work.to_real()), torch.zeros(len(spans), *A.shape, dtype=work)
    d, sequences = u.shape[2], len(spans)
    # Here the slabs change no bit, so there may be narrow ones where threads would be idle.
    threads = torch.get_num_threads()
    slabs = max(_slabs(d, sequences, 4 * threads), min(-(-d // width(work)), threads // max(1, sequences)))
    groups = _groups(work, d, slabs)
    units = -(-d // (groups * width(work))) * sequences
    states = u.numel() * A.shape[1]
    _run(cpu_kernels.scan_forward, _FORWARD, work, units, states, groups, spans, *inputs, y.numpy(), final.numpy())
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
    if (pieces := cpu_pieces.cut(u, delta, A, delta_bias, cu_seqlens, delta_softplus)) is not None:
        inputs = u, delta, A, B, C, D, z, delta_bias
        return cpu_pieces.backward(
            scan_forward, scan_backward, pieces, dy, dfinal_state, inputs, initial_state, delta_softplus, discretisation
        )
    work, spans = working_dtype(A), spans_of(u, cu_seqlens)
    across = max(1, min(len(spans), PARTS))
    down = _slabs(u.shape[2], across, PARTS)
    groups = _groups(work, u.shape[2], down)
    inputs = _inputs(work, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, discretisation)
    sums = _gradient_sums(work, u, A, B, C, len(spans), down, across)
    arrays = array(dy, work.to_real(), 3), array(dfinal_state, work, 3), *(part.numpy() for part in sums)
    states = u.numel() * A.shape[1]
    _run(
        cpu_kernels.scan_backward, _BACKWARD, work, down * across, states, groups, spans, *inputs, *arrays, down, across
    )
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = sums
    dB, dC = (parts[0] if matrix.dim() == 2 else parts for matrix, parts in ((B, dB), (C, dC)))
    grads = (du, ddelta, *map(ordered_sum, (dA, dB, dC, dD)), dz, ordered_sum(dbias), dinitial)
    return tuple(map(_as_gradient, grads, (u, delta, A, B, C, D, z, delta_bias, initial_state)))


def _gradient_sums(
    work: torch.dtype, u: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int, down: int, across: int
) -> tuple[Tensor, ...]:
    """What the backward kernel fills and adds to, in the order of `cpu_kernels.Gradients`.

    The sums over l of the channels' own parameters are taken in double precision.
    """
    (b, length, d), n = u.shape, A.shape[1]
    du, ddelta, dz = (fresh(*u.shape, dtype=work.to_real()) for _ in range(3))
    dA = torch.zeros(across, d, n, dtype=torch.promote_types(work, torch.float64))
    dD, dbias = (torch.zeros(across, d, dtype=torch.float64) for _ in range(2))
    shapes = ((1, across, d, n) if matrix.dim() == 2 else (down, b, length, n) for matrix in (B, C))
    dB, dC = (fresh(*shape, dtype=work).zero_() for shape in shapes)
    return du, ddelta, dA, dB, dC, dD, dz, dbias, torch.zeros(rows, d, n, dtype=work)


def _slabs(d: int, sequences: int, wanted: int) -> int:
    """How many slabs to part d channels into, to have about as many units of work as wanted."""
    return max(1, min(-(-d // SLAB), wanted // max(1, sequences)))


def _groups(work: torch.dtype, d: int, slabs: int) -> int:
    """Groups of lanes in each of `slabs` slabs."""
    return -(-d // (slabs * width(work)))


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
        array(u, real, 3),
        array(delta, real, 3),
        array(A, work, 2),
        array(B if B.dim() == 3 else B[None], work, 3),
        array(C if C.dim() == 3 else C[None], work, 3),
        array(D, real, 1),
        array(z, real, 3),
        array(delta_bias, real, 1),
        array(initial_state, work, 3),
        B.dim() == 2,
        C.dim() == 2,
        delta_softplus,
        discretisation == "zoh",
    )


def _as_gradient(grad: Tensor, tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    grad = grad.real if grad.is_complex() and not tensor.is_complex() else grad
    grad = grad.to(tensor.dtype).contiguous()
    # The first of several partial sums would keep the memory of all.
    return grad if grad.untyped_storage().nbytes() == grad.nbytes else grad.clone()


def _run(kernel: Any, codes: str, work: torch.dtype, units: int, states: int, *arguments: Any) -> None:
    """Have threads share out the units of a kernel's work, GRAIN states a share at least."""
    ready(kernel, codes, work)
    shares = max(1, min(states // GRAIN, 4 * torch.get_num_threads()))
    share_out(lambda first, last: kernel(first, last, *arguments), units, shares)
