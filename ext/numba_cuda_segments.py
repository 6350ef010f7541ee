"""Long sequences cut into segments that run at the same time, where whole ones would leave most of a GPU idle.

The state after a segment is what it makes of nothing, plus exp(A ΣΔ) times the state before it; so a first pass leaves
(state from zero, ΣΔ) of every segment, a short loop over the segments carries the states on, and then each segment is a
row of its own. The gradients of the states go the other way.
"""

from functools import cache, partial
from typing import Any

import torch
from numba import types
from torch import Tensor

from .numba_cuda_arrays import ELEMENT, compiled, cuda, launch
from .numba_cuda_backward import retreat, stage_grads
from .numba_cuda_math import REAL, functions
from .numba_cuda_plan import INITIAL, Plan
from .numba_cuda_scan_kernels import codes, extent, rows_of_kept, scan_keep
from .numba_cuda_tiles import load_own, stage_inputs, stage_matrix, store_own

THREADS = 2**16  # that keep a large GPU busy
LEAST = 128  # steps of a segment, about
CARRIERS = 128  # threads of a block that carries states on


def cut(plan: Plan, u: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int]:
    """How many segments a sequence has, and how many steps each but the last; packed sequences have one."""
    b, length = u.shape[:2]
    threads = b * plan.blocks_across(u.shape[2]) * plan.threads
    if cu_seqlens is not None or threads == 0 or length == 0:
        return 1, length
    segments = min(THREADS // threads, length // LEAST)
    # Every state is computed twice, so two at the same time are no quicker than one.
    if segments < 3:
        return 1, length
    reach = -(-length // (segments * 32)) * 32
    return -(-length // reach), reach


def carried(plan: Plan, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor]:
    """The kernels' first arguments with the initial state of every segment, and the sums of Δ."""
    *first, initial, bounds, given, segments, reach = inputs
    u, A = first[0], first[2]
    b, length, d = u.shape
    rows = b * segments
    kept = A.new_empty(rows_of_kept(plan, rows, reach, length, False), *A.shape[1:])
    ends, elapsed = A.new_empty(rows, *A.shape[1:]), u.new_empty(rows, d, dtype=torch.float64)
    blank = *first, initial, bounds, given & ~INITIAL, segments, reach
    launch(partial(scan_keep, plan), u.device, rows * plan.blocks_across(d), plan.threads, *blank, kept, ends, elapsed)
    states = _carry(plan, A, ends, elapsed, initial, given & INITIAL, segments, 0)
    return (*first, states, bounds, given | INITIAL, segments, reach), elapsed


def carried_back(plan: Plan, inputs: tuple[Any, ...], dy: Tensor, dfinal_state: Tensor, elapsed: Tensor) -> Tensor:
    """The gradient of the state after every segment."""
    u, A, segments = inputs[0], inputs[2], inputs[-2]
    rows = u.shape[0] * segments
    blocks, begins = rows * plan.blocks_across(u.shape[2]), A.new_empty(rows, *A.shape[1:])
    launch(partial(_scan_retreat, plan), u.device, blocks, plan.threads, *inputs, dy, begins)
    return _carry(plan, A, begins, elapsed, dfinal_state, 1, segments, 1)


def _carry(
    plan: Plan, A: Tensor, ends: Tensor, elapsed: Tensor, start: Tensor, started: int, segments: int, back: int
) -> Tensor:
    """What comes into every segment, from `start` (where that was given) and what each adds, first to last or back."""
    carried = torch.empty_like(ends)
    blocks = -(-ends.numel() // (segments * CARRIERS))
    arguments = A, ends, elapsed, start, started, segments, back, carried
    launch(partial(_carry_kernel, plan), ends.device, blocks, CARRIERS, *arguments)
    return carried


@cache
def _carry_kernel(plan: Plan) -> Any:
    n, zero, real = plan.n, REAL[plan.dtype](0), REAL[plan.dtype]
    f, row, flag = functions(plan.dtype, plan.is_complex), (plan.work, 3), types.int64
    exp, conj = f.exp, f.conj

    @compiled([row, row, (torch.float64, 2), row, flag, flag, flag, row], CARRIERS)
    def kernel(A, ends, elapsed, start, started, segments, back, carried):
        place, d = cuda.grid(1), A.shape[1]
        batch, channel, k = place // (d * n), place // n % d, place % n
        if batch * segments >= ends.shape[0]:
            return
        h = A[0, channel, k] * zero
        if started:
            h = start[batch, channel, k]
        for j in range(segments):
            row = batch * segments + (segments - 1 - j if back else j)
            carried[row, channel, k] = h
            decay = exp(A[0, channel, k] * real(elapsed[row, channel]))
            # Nothing stays nothing, however much it would have grown.
            passed = h if h == zero else (conj(decay) if back else decay) * h
            h = passed + ends[row, channel, k]

    return kernel


@cache
def _scan_retreat(plan: Plan) -> Any:
    """The gradients of the states before each row that come from its own outputs."""
    tile, channels, states = plan.forward_tile, plan.channels, plan.states
    real, work, C_rows, padded = ELEMENT[plan.real], ELEMENT[plan.work], tile if plan.selective_C else 1, plan.padded
    load, store, stage, run, stage_dy = (f(plan) for f in (load_own, store_own, stage_inputs, retreat, stage_grads))
    selective_C, stage_C = plan.selective_C, stage_matrix(plan, plan.selective_C)

    @compiled([*codes(plan), (plan.dtype, 3), (plan.work, 3)], plan.threads)
    def kernel(u, delta, A, B, C, D, z, bias, initial, bounds, given, segments, reach, dy, begins):
        steps = cuda.shared.array((tile, channels), real)
        inputs = cuda.shared.array((tile, channels), real)
        products = cuda.shared.array((tile, channels), real)
        grads = cuda.shared.array((tile, channels), real)
        C_tile = cuda.shared.array((C_rows, padded), work)
        A_own = cuda.local.array(states, work)
        C_own = cuda.local.array(states, work)
        dh = cuda.local.array(states, work)
        across = (u.shape[2] + channels - 1) // channels
        row, c = cuda.blockIdx.x // across, cuda.threadIdx.x % channels
        place = cuda.blockIdx.x % across * channels + c, c, cuda.threadIdx.x // channels
        batch, begin, end = extent(bounds, given, row, segments, reach, u.shape[1])
        load(A, 0, place, A_own, True)
        load(C, 0, place, C_own, not selective_C)
        load(begins, row, place, dh, False)
        for j in range((end - begin + tile - 1) // tile - 1, -1, -1):
            at = begin + j * tile
            count = min(tile, end - at)
            cuda.syncthreads()
            stage(u, delta, bias, given, batch, at, count, place, steps, inputs, products)
            stage_dy(dy, z, given, batch, at, count, place, grads)
            stage_C(C, batch, at, count, cuda.threadIdx.x, C_tile)
            cuda.syncthreads()
            run(count, place, steps, grads, A_own, C_tile, C_own, dh)
        store(dh, row, place, begins)

    return kernel
