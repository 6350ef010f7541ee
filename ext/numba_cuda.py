"""The scan of the numba-cuda backend: prepares tensors for its kernels and adds up what they leave in parts."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import numba_cuda_plan as plans
from . import numba_cuda_scan_kernels as kernels
from .numba_cuda_arrays import absent, launch
from .numba_cuda_plan import Plan
from .numba_cuda_segments import carried, carried_back, cut


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
    """As `reference.scan_forward`, with no more than its results in memory, and a state of every segment."""
    plan = _plan(u, A, B, C, discretisation)
    rows, inputs = _inputs(plan, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus)
    segments = inputs[-2]
    if segments > 1:
        inputs, _ = carried(plan, inputs)
    y, final = u.new_empty(u.shape), A.new_empty(rows, *A.shape)
    kernel = partial(kernels.scan_forward, plan)
    launch(kernel, u.device, rows * plan.blocks_across(len(A)), plan.threads, *inputs, y, final)
    return y, final if segments == 1 else final[segments - 1 :: segments].clone()


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
    """As `reference.scan_backward`; states are computed again, from one kept every `span` steps."""
    plan = _plan(u, A, B, C, discretisation)
    rows, inputs = _inputs(plan, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus)
    blocks, (segments, reach) = rows * plan.blocks_across(len(A)), inputs[-2:]
    if segments > 1:
        inputs, elapsed = carried(plan, inputs)
        dfinal_state = carried_back(plan, inputs, dy, dfinal_state, elapsed)
    kept = A.new_empty(kernels.rows_of_kept(plan, rows, reach, u.shape[1], cu_seqlens is not None), *A.shape)
    final, elapsed = A.new_empty(rows, *A.shape), u.new_empty(rows, len(A), dtype=torch.float64)
    launch(partial(kernels.scan_keep, plan), u.device, blocks, plan.threads, *inputs, kept, final, elapsed)
    grads = _empty_gradients(plan, u, A, rows)
    launch(
        partial(kernels.scan_backward, plan), u.device, blocks, plan.threads, *inputs, dy, dfinal_state, kept, *grads
    )
    whole = _added_up(plan, grads, segments)
    return tuple(map(_as_gradient, whole, (u, delta, A, B, C, D, z, delta_bias, initial_state)))


def _plan(u: Tensor, A: Tensor, B: Tensor, C: Tensor, discretisation: str) -> Plan:
    return Plan(
        dtype=u.dtype,
        is_complex=A.is_complex(),
        n=A.shape[1],
        room=plans.room_for(len(A)),
        selective_B=B.dim() == 3,
        selective_C=C.dim() == 3,
        zoh=discretisation == "zoh",
    )


def _inputs(
    plan: Plan,
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
) -> tuple[int, tuple[Any, ...]]:
    """The number of rows, and the first arguments of every kernel as `kernels.codes` has them."""
    flags = (
        (plans.D, D),
        (plans.Z, z),
        (plans.BIAS, delta_bias),
        (plans.SOFTPLUS, delta_softplus or None),
        (plans.PACKED, cu_seqlens),
        (plans.INITIAL, initial_state),
    )
    given = sum(flag for flag, value in flags if value is not None)
    B, C = (matrix.to(plan.stored(matrix.dim() == 3)) for matrix in (B, C))
    B, C = (matrix if matrix.dim() == 3 else matrix[None] for matrix in (B, C))
    D, delta_bias = (absent(1, plan.real, u) if row is None else row for row in (D, delta_bias))
    z = absent(3, plan.dtype, u) if z is None else z
    initial_state = absent(3, plan.work, u) if initial_state is None else initial_state
    bounds = absent(1, torch.int32, u) if cu_seqlens is None else cu_seqlens
    segments, reach = cut(plan, u, cu_seqlens)
    rows = u.shape[0] * segments if cu_seqlens is None else len(cu_seqlens) - 1
    return rows, (u, delta, A[None], B, C, D, z, delta_bias, initial_state, bounds, given, segments, reach)


def _empty_gradients(plan: Plan, u: Tensor, A: Tensor, rows: int) -> tuple[Tensor, ...]:
    """What the backward kernel writes, as `kernels.gradient_codes` has it."""
    (b, length, d), n = u.shape, plan.n
    du, ddelta, dz = (u.new_empty(u.shape) for _ in range(3))
    dA = u.new_empty(rows, d, n, dtype=plan.wide)
    dB, dC = (
        u.new_empty(plan.blocks_across(d), b, length, n, dtype=plan.work)
        if selective
        else u.new_empty(1, rows, d, n, dtype=plan.wide)
        for selective in (plan.selective_B, plan.selective_C)
    )
    dD, dbias = (u.new_empty(rows, d, dtype=torch.float64) for _ in range(2))
    return du, ddelta, dz, dA, dB, dC, dD, dbias, A.new_empty(rows, d, n)


def _added_up(plan: Plan, grads: tuple[Tensor, ...], segments: int) -> tuple[Tensor, ...]:
    """The gradients in the order of the scan's tensors, their parts summed in a fixed order."""
    du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial = grads
    dB, dC = (
        parts.sum(0 if selective else (0, 1)) for selective, parts in ((plan.selective_B, dB), (plan.selective_C, dC))
    )
    if plan.selective_C and plan.is_complex:
        # Not the lazy conj(), which is forgotten where a compiled graph runs this.
        dC = 2 * dC.conj_physical()
    return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dz, dbias.sum(0), dinitial[::segments]


def _as_gradient(grad: Tensor, tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    grad = grad.real if grad.is_complex() and not tensor.is_complex() else grad
    grad = grad.to(tensor.dtype).contiguous()
    # The first row of several segments would keep the memory of all.
    return grad if grad.untyped_storage().nbytes() == grad.nbytes else grad.clone()
