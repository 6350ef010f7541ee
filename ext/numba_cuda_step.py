"""One token of a mixer on numba-cuda: two kernels, which write the states in place, around torch's two products."""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from numba import types
from torch import Tensor

from . import numba_cuda_plan as plans
from .numba_cuda_arrays import absent, compiled, cuda, launch
from .numba_cuda_math import REAL, elements, functions
from .numba_cuda_plan import BIAS, SOFTPLUS, D, Plan, Z
from .numba_cuda_tiles import discretise

THREADS = 128  # of a block; a thread has one channel of one sequence


def step(
    x: Tensor,
    z: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    conv_state: Tensor,
    scan_state: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    activation: str,
    delta_softplus: bool,
    discretisation: str,
) -> Tensor:
    """As `reference.step`."""
    n, rank = A.shape[1], 0 if dt_proj is None else dt_proj.shape[1]
    u = _conv(x, conv_weight, conv_bias, conv_state, activation == "silu")
    low, B_rows, C_rows = F.linear(u, x_proj).split([rank, 0 if B is not None else n, 0 if C is not None else n], -1)
    delta = torch.zeros_like(u) if dt_proj is None else F.linear(low, dt_proj)
    matrices = B_rows if B is None else B, C_rows if C is None else C
    zoh = discretisation == "zoh"
    plan = Plan(
        dtype=x.dtype,
        is_complex=A.is_complex(),
        n=n,
        room=1,
        selective_B=B is None,
        selective_C=C is None,
        zoh=zoh,
    )
    B, C = (matrix.to(plan.stored(given is None)) for matrix, given in zip(matrices, (B, C), strict=True))
    flags = (plans.D, D), (Z, z), (BIAS, delta_bias), (SOFTPLUS, delta_softplus or None)
    given = sum(flag for flag, value in flags if value is not None)
    D, delta_bias = (absent(1, plan.real, u) if row is None else row for row in (D, delta_bias))
    z, y = absent(2, x.dtype, u) if z is None else z, u.new_empty(u.shape)
    threads, blocks = _grid(u)
    kernel = partial(_scan_step, plan)
    launch(kernel, x.device, blocks, threads, u, delta, A, B, C, D, z, delta_bias, given, scan_state, y)
    return y


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, conv_state: Tensor, silu: bool) -> Tensor:
    """The convolution's next output (b d); moves `conv_state` on."""
    u, (threads, blocks) = x.new_empty(x.shape), _grid(x)
    offset = absent(1, weight.dtype, x) if bias is None else bias
    kernel = partial(_conv_step, x.dtype, weight.dtype, silu)
    launch(kernel, x.device, blocks, threads, x, weight, offset, 0 if bias is None else BIAS, conv_state, u)
    return u


def _grid(x: Tensor) -> tuple[int, int]:
    """Threads of a block, and blocks."""
    threads = max(1, min(THREADS, x.numel()))
    return threads, -(-x.numel() // threads)


@cache
def _conv_step(dtype: torch.dtype, weight_dtype: torch.dtype, silu: bool) -> Any:
    (read, narrow), read_weight = elements(dtype), elements(weight_dtype).widen
    sigmoid, zero = functions(dtype, False).sigmoid, REAL[dtype](0)

    @compiled([(dtype, 2), (weight_dtype, 2), (weight_dtype, 1), types.int64, (dtype, 3), (dtype, 2)], THREADS)
    def kernel(x, weight, bias, given, state, u):
        batch, channel = cuda.grid(1) // x.shape[1], cuda.grid(1) % x.shape[1]
        if batch >= x.shape[0]:
            return
        past, total = state.shape[1], zero
        for j in range(past):
            total += read_weight(weight[channel, j]) * read(state[batch, j, channel])
            if j > 0:
                state[batch, j - 1, channel] = state[batch, j, channel]
        total += read_weight(weight[channel, past]) * read(x[batch, channel])
        if past > 0:
            state[batch, past - 1, channel] = x[batch, channel]
        if given & BIAS:
            total += read_weight(bias[channel])
        if silu:
            total *= sigmoid(total)
        u[batch, channel] = narrow(total)

    return kernel


@cache
def _scan_step(plan: Plan) -> Any:
    (read, narrow), f, discretised = elements(plan.dtype), functions(plan.dtype, plan.is_complex), discretise(plan)
    read_B, read_C = (elements(plan.stored(selective)).widen for selective in (plan.selective_B, plan.selective_C))
    softplus, sigmoid, real_part = f.softplus, f.sigmoid, f.real_part
    selective_B, selective_C, zero = plan.selective_B, plan.selective_C, REAL[plan.dtype](0)
    scale, row, short = REAL[plan.dtype](2 if plan.is_complex else 1), (plan.real, 1), (plan.dtype, 2)
    B, C = (plan.stored(plan.selective_B), 2), (plan.stored(plan.selective_C), 2)

    @compiled([short, short, (plan.work, 2), B, C, row, short, row, types.int64, (plan.work, 3), short], THREADS)
    def kernel(u, delta, A, B, C, D_row, z, bias, given, state, y):
        batch, channel = cuda.grid(1) // u.shape[1], cuda.grid(1) % u.shape[1]
        if batch >= u.shape[0]:
            return
        x, now, total = read(u[batch, channel]), read(delta[batch, channel]), zero
        if given & BIAS:
            now += bias[channel]
        if given & SOFTPLUS:
            now = softplus(now)
        for k in range(A.shape[1]):
            decay, gain = discretised(now, now * x, A[channel, k])
            b = read_B(B[batch if selective_B else channel, k])
            c = read_C(C[batch if selective_C else channel, k])
            h = decay * state[batch, channel, k] + gain * b
            state[batch, channel, k] = h
            total += real_part(c * h)
        total *= scale
        if given & D:
            total += D_row[channel] * x
        if given & Z:
            gate = read(z[batch, channel])
            total *= gate * sigmoid(gate)
        y[batch, channel] = narrow(total)

    return kernel
