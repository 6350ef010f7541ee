"""The kernels of the numba-cuda scan: tiles of steps one after the other, with a barrier wherever threads exchange.

A block has some channels of one row: a sequence, one of the packed sequences, or one of the segments into which long
sequences are cut. A thread is at `place`: its channel, number c of its block and group g of the channel's states. See
`numba_cuda_tiles` for what the threads of a block share.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types

from .numba_cuda_arrays import ELEMENT, compiled, cuda, device_function
from .numba_cuda_backward import backward
from .numba_cuda_plan import INITIAL, PACKED, Plan
from .numba_cuda_tiles import advance, load_own, observe, stage_inputs, stage_matrix, store_own, write_outputs


def codes(plan: Plan) -> list[Any]:
    """u, delta, A, B, C, D, z, bias; a row of states; bounds; given, segments, reach."""
    short, real, work = (plan.dtype, 3), (plan.real, 1), (plan.work, 3)
    B, C = (plan.stored(plan.selective_B), 3), (plan.stored(plan.selective_C), 3)
    return [short, short, work, B, C, real, short, real, work, (torch.int32, 1), *[types.int64] * 3]


def gradient_codes(plan: Plan) -> list[Any]:
    """dy, a row of dfinal_state, kept; du, ddelta, dz; dA, dB, dC, dD, dbias in parts; a row of dinitial_state."""
    short, work, wide, sums = (plan.dtype, 3), (plan.work, 3), (plan.wide, 3), (torch.float64, 2)
    dB, dC = ((plan.work, 4) if selective else (plan.wide, 4) for selective in (plan.selective_B, plan.selective_C))
    return [short, work, work, short, short, short, wide, dB, dC, sums, sums, work]


@cache
def scan_forward(plan: Plan) -> Any:
    """y and the final states."""
    tile, states, work = plan.forward_tile, plan.states, _work(plan)
    load, store, run, write = (f(plan) for f in (load_own, store_own, observe, write_outputs))
    place_of, shared, stage = _place(plan), _forward_arrays(plan), stage_inputs(plan)
    selective_B, selective_C = plan.selective_B, plan.selective_C
    stage_B, stage_C = stage_matrix(plan, selective_B), stage_matrix(plan, selective_C)

    @compiled([*codes(plan), (plan.dtype, 3), (plan.work, 3)], plan.threads)
    def kernel(u, delta, A, B, C, D, z, bias, initial, bounds, given, segments, reach, y, final):
        steps, inputs, products, parts, B_tile, C_tile = shared()
        A_own = cuda.local.array(states, work)
        B_own = cuda.local.array(states, work)
        C_own = cuda.local.array(states, work)
        h = cuda.local.array(states, work)
        row, _, place = place_of(u.shape[2])
        batch, begin, end = extent(bounds, given, row, segments, reach, u.shape[1])
        load(A, 0, place, A_own, True)
        load(B, 0, place, B_own, not selective_B)
        load(C, 0, place, C_own, not selective_C)
        load(initial, row, place, h, given & INITIAL)
        for at in range(begin, end, tile):
            count = min(tile, end - at)
            # Here and in `write` a thread meets the same steps of its channel, so no barrier stands between them.
            stage(u, delta, bias, given, batch, at, count, place, steps, inputs, products)
            stage_B(B, batch, at, count, cuda.threadIdx.x, B_tile)
            stage_C(C, batch, at, count, cuda.threadIdx.x, C_tile)
            cuda.syncthreads()
            run(count, place, steps, products, A_own, B_tile, B_own, C_tile, C_own, h, parts)
            cuda.syncthreads()
            write(D, z, given, batch, at, count, place, inputs, parts, y)
        store(h, row, place, final)

    return kernel


@cache
def scan_keep(plan: Plan) -> Any:
    """The states every `plan.span` steps, those at the end, and the sum of each channel's Δ."""
    tile, states, work = plan.keep_tile, plan.states, _work(plan)
    load, store, run, begins = (f(plan) for f in (load_own, store_own, advance, _first_kept))
    place_of, shared, stage = _place(plan), _forward_arrays(plan), stage_inputs(plan)
    span, selective_B, stage_B = plan.span, plan.selective_B, stage_matrix(plan, plan.selective_B)

    @compiled([*codes(plan), (plan.work, 3), (plan.work, 3), (torch.float64, 2)], plan.threads)
    def kernel(u, delta, A, B, C, D, z, bias, initial, bounds, given, segments, reach, kept, final, elapsed):
        steps, inputs, products, _, B_tile, _ = shared()
        A_own = cuda.local.array(states, work)
        B_own = cuda.local.array(states, work)
        h = cuda.local.array(states, work)
        row, _, place = place_of(u.shape[2])
        batch, begin, end = extent(bounds, given, row, segments, reach, u.shape[1])
        channel, c, g = place
        load(A, 0, place, A_own, True)
        load(B, 0, place, B_own, not selective_B)
        load(initial, row, place, h, given & INITIAL)
        at_kept, total = begins(given, row, begin, reach), 0.0
        for at in range(begin, end, tile):
            count = min(tile, end - at)
            if (at - begin) % span == 0:
                store(h, at_kept + (at - begin) // span, place, kept)
            stage(u, delta, bias, given, batch, at, count, place, steps, inputs, products)
            stage_B(B, batch, at, count, cuda.threadIdx.x, B_tile)
            cuda.syncthreads()
            run(count, place, steps, products, A_own, B_tile, B_own, h)
            if g == 0:
                for t in range(count):
                    total += steps[t, c]
            cuda.syncthreads()
        store(h, row, place, final)
        if g == 0 and channel < u.shape[2]:
            elapsed[row, channel] = total

    return kernel


@cache
def scan_backward(plan: Plan) -> Any:
    """All gradients: du, ddelta, dz and dinitial whole, the rest in parts that are to be added up.

    Parts of selective dB and dC are (blocks_across b l n), of static ones (1 rows d n); for a selective dC it is the
    sum of dy h. Those of dA are (rows d n), those of dD and dbias (rows d).
    """
    states, span, tile, tiles = plan.states, plan.span, plan.backward_tile, plan.tiles
    work, wide, selective_B, selective_C = _work(plan), ELEMENT[plan.wide], plan.selective_B, plan.selective_C
    load, store, begins, place_of = (f(plan) for f in (load_own, store_own, _first_kept, _place))
    shared, split, back, write_sums = (f(plan) for f in (_backward_arrays, _split, _back, _write_sums))

    @compiled([*codes(plan), *gradient_codes(plan)], plan.threads)
    def kernel(
        u, delta, A, B, C, D, z, bias, initial, bounds, given, segments, reach,
        dy, dfinal, kept, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
    ):  # fmt: skip
        tiled = shared()
        A_own = cuda.local.array(states, work)
        B_own = cuda.local.array(states, work)
        C_own = cuda.local.array(states, work)
        h = cuda.local.array(states, work)
        dh = cuda.local.array(states, work)
        firsts = cuda.local.array((tiles, states), work)
        sums = cuda.local.array((3, states), wide)
        channel_sums = cuda.local.array(2, types.float64)
        row, block, place = place_of(u.shape[2])
        batch, begin, end = extent(bounds, given, row, segments, reach, u.shape[1])
        load(A, 0, place, A_own, True)
        load(B, 0, place, B_own, not selective_B)
        load(C, 0, place, C_own, not selective_C)
        load(dfinal, row, place, dh, True)
        for i in range(states):
            sums[0, i] = sums[1, i] = sums[2, i] = 0
        channel_sums[0] = channel_sums[1] = 0
        given_inputs, outputs = (u, delta, B, C, D, z, bias, dy), (du, ddelta, dz, dB, dC)
        own = A_own, B_own, C_own, h, dh, firsts, sums, channel_sums
        at_kept = begins(given, row, begin, reach)
        for kept_row in range((end - begin + span - 1) // span - 1, -1, -1):
            start = begin + kept_row * span
            stop = min(start + span, end)
            load(kept, at_kept + kept_row, place, h, True)
            split(given_inputs, given, batch, start, stop, place, tiled, own)
            for j in range((stop - start + tile - 1) // tile - 1, -1, -1):
                at = start + j * tile
                back(given_inputs, given, batch, at, min(tile, stop - at), j, place, block, tiled, own, outputs)
        store(dh, row, place, dinitial)
        write_sums(row, place, sums, channel_sums, tiled, dA, dB, dC, dD, dbias)

    return kernel


def _work(plan: Plan) -> Any:
    return ELEMENT[plan.work]


@device_function
def extent(bounds, given, row, segments, reach, length):
    """The place in the batch of a row, and its first and last step."""
    if given & PACKED:
        return np.int64(0), np.int64(bounds[row]), np.int64(bounds[row + 1])
    begin = row % segments * reach
    return row // segments, begin, min(begin + reach, length)


@cache
def _place(plan: Plan) -> Any:
    """Of d channels: the row, the number of the block among those of the row, and the place of the thread."""
    channels = plan.channels

    def place(d):
        across = (d + channels - 1) // channels
        row, block = cuda.blockIdx.x // across, cuda.blockIdx.x % across
        c, g = cuda.threadIdx.x % channels, cuda.threadIdx.x // channels
        return row, block, (block * channels + c, c, g)

    return device_function(place)


@cache
def _first_kept(plan: Plan) -> Any:
    """Where among the kept states those of a row begin; `rows_of_kept` in all are enough."""
    span = plan.span

    def first(given, row, begin, reach):
        if given & PACKED:
            return begin // span + row
        return row * ((reach + span - 1) // span)

    return device_function(first)


def rows_of_kept(plan: Plan, rows: int, reach: int, length: int, packed: bool) -> int:
    """How many states the backward pass keeps of each channel."""
    return length // plan.span + rows if packed else rows * -(-reach // plan.span)


@cache
def _forward_arrays(plan: Plan) -> Any:
    """Δ, u, Δu, the parts of y, B and C of a tile."""
    real, work, rows, parts_shape = ELEMENT[plan.real], _work(plan), *_shapes(plan, plan.forward_tile)
    B_shape, C_shape = _matrix_shapes(plan, plan.forward_tile)

    def arrays():
        steps = cuda.shared.array(rows, real)
        inputs = cuda.shared.array(rows, real)
        products = cuda.shared.array(rows, real)
        parts = cuda.shared.array(parts_shape, real)
        B_tile = cuda.shared.array(B_shape, work)
        C_tile = cuda.shared.array(C_shape, work)
        return steps, inputs, products, parts, B_tile, C_tile

    return device_function(arrays)


@cache
def _backward_arrays(plan: Plan) -> Any:
    """The same, and dy, the states of every step, and two arrays of parts."""
    real, work, rows, parts_shape = ELEMENT[plan.real], _work(plan), *_shapes(plan, plan.backward_tile)
    B_shape, C_shape = _matrix_shapes(plan, plan.backward_tile)
    # One channel more, so that threads that add up the channels meet no conflicts of banks.
    slots_shape, totals_shape = (plan.backward_tile, plan.padded, plan.channels + 1), (2, plan.groups, plan.channels)

    def arrays():
        steps = cuda.shared.array(rows, real)
        inputs = cuda.shared.array(rows, real)
        products = cuda.shared.array(rows, real)
        grads = cuda.shared.array(rows, real)
        parts = cuda.shared.array(parts_shape, real)
        parts_A = cuda.shared.array(parts_shape, real)
        slots = cuda.shared.array(slots_shape, work)
        B_tile = cuda.shared.array(B_shape, work)
        C_tile = cuda.shared.array(C_shape, work)
        totals = cuda.shared.array(totals_shape, types.float64)
        return steps, inputs, products, grads, parts, parts_A, slots, B_tile, C_tile, totals

    return device_function(arrays)


def _shapes(plan: Plan, tile: int) -> tuple[tuple[int, ...], ...]:
    return (tile, plan.channels), (tile, plan.groups, plan.channels)


def _matrix_shapes(plan: Plan, tile: int) -> tuple[tuple[int, ...], ...]:
    return (tile if plan.selective_B else 1, plan.padded), (tile if plan.selective_C else 1, plan.padded)


def _split(plan: Plan) -> Any:
    """The states before each tile of a span, from those before the span."""
    tile, states, stage, run = plan.backward_tile, plan.states, stage_inputs(plan), advance(plan)
    stage_B = stage_matrix(plan, plan.selective_B)

    def split(given_inputs, given, batch, start, stop, place, tiled, own):
        u, delta, B, _, _, _, bias, _ = given_inputs
        steps, inputs, products, _, _, _, _, B_tile, _, _ = tiled
        A, B_own, _, h, _, firsts, _, _ = own
        for at in range(start, stop, tile):
            for i in range(states):
                firsts[(at - start) // tile, i] = h[i]
            if at + tile < stop:
                cuda.syncthreads()
                stage(u, delta, bias, given, batch, at, tile, place, steps, inputs, products)
                stage_B(B, batch, at, tile, cuda.threadIdx.x, B_tile)
                cuda.syncthreads()
                run(tile, place, steps, products, A, B_tile, B_own, h)

    return device_function(split)


def _back(plan: Plan) -> Any:
    """One tile of the way back."""
    states, selective_B, selective_C = plan.states, plan.selective_B, plan.selective_C
    stage, stage_B, stage_C = stage_inputs(plan), stage_matrix(plan, selective_B), stage_matrix(plan, selective_C)
    stage_grads, write_gate, recompute, reverse, sum_channels, write_inputs = backward(plan)

    def back(given_inputs, given, batch, at, count, j, place, block, tiled, own, outputs):
        u, delta, B, C, D, z, bias, dy = given_inputs
        steps, inputs, products, grads, parts, parts_A, slots, B_tile, C_tile, _ = tiled
        A, B_own, C_own, h, dh, firsts, sums, channel_sums = own
        du, ddelta, dz, dB, dC = outputs
        thread = cuda.threadIdx.x
        cuda.syncthreads()
        stage(u, delta, bias, given, batch, at, count, place, steps, inputs, products)
        stage_grads(dy, z, given, batch, at, count, place, grads)
        stage_B(B, batch, at, count, thread, B_tile)
        stage_C(C, batch, at, count, thread, C_tile)
        for i in range(states):
            h[i] = firsts[j, i]
        cuda.syncthreads()
        recompute(count, place, steps, products, grads, A, B_tile, B_own, C_tile, C_own, h, slots, parts, sums)
        cuda.syncthreads()
        write_gate(dy, D, z, given, batch, at, count, place, inputs, parts, dz)
        if selective_C:
            sum_channels(grads, slots, batch, at, count, thread, block, dC)
        for i in range(states):
            h[i] = firsts[j, i]
        cuda.syncthreads()
        reverse(
            count, place, steps, products, grads, A, B_tile, B_own, C_tile, C_own, h, dh, slots, parts, parts_A, sums
        )
        cuda.syncthreads()
        write_inputs(D, given, batch, at, count, place, steps, inputs, grads, parts, parts_A, du, ddelta, channel_sums)
        if selective_B:
            sum_channels(products, slots, batch, at, count, thread, block, dB)

    return device_function(back)


def _write_sums(plan: Plan) -> Any:
    """What a row leaves of the sums along it."""
    n, states, groups, selective_B, selective_C = plan.n, plan.states, plan.groups, plan.selective_B, plan.selective_C

    def write(row, place, sums, channel_sums, tiled, dA, dB, dC, dD, dbias):
        channel, c, g = place
        totals = tiled[9]
        totals[0, g, c], totals[1, g, c] = channel_sums[0], channel_sums[1]
        cuda.syncthreads()
        if channel >= dD.shape[1]:
            return
        for i in range(states):
            k = g * states + i
            if k < n:
                dA[row, channel, k] = sums[0, i]
                if not selective_B:
                    dB[0, row, channel, k] = sums[1, i]
                if not selective_C:
                    dC[0, row, channel, k] = sums[2, i]
        if g == 0:
            dD[row, channel], dbias[row, channel] = totals[0, 0, c], totals[1, 0, c]
            for j in range(1, groups):
                dD[row, channel] += totals[0, j, c]
                dbias[row, channel] += totals[1, j, c]

    return device_function(write)
