"""The selective scan and its gradients on the CPU, streaming: a few steps of a few channels at a time, in cache.

A tile of channels goes along one sequence in chunks of steps. Forward, `prepare` reads a chunk's u and Δ, then
`advance` takes each state over its steps. Backward, a first sweep keeps the state before each chunk; then the chunks
are taken from the last to the first, each state once more forwards, leaving its history and decays in cache, and from
there in reverse (`retreat`). So memory grows with l only by one state a chunk of the tiles being computed.

Threads share out the tiles, and which tile does what depends on shapes alone, so the number of threads changes no bit.
Sums over tiles and over sequences are left to the caller as partial sums, in an order that is fixed as well.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .cpu_chunks import advance, advance_four, advance_one, gate, prepare, retreat_four, retreat_one, seed, settle
from .cpu_tiles import (
    BLOCK,
    CHUNK,
    GROUPS,
    LINES_B,
    LINES_C,
    copy,
    drain,
    initial_columns,
    kernel,
    part,
    scratch_for,
    scratch_part,
    tile_at,
    total_lines,
)  # fmt: skip
from .lanes import width


class Inputs(NamedTuple):
    """What both kernels get. What was not given is an empty array, and the last axis of each is contiguous."""

    u: Any
    delta: Any
    A: Any
    B: Any  # (b l n) when selective, (1 d n) when static
    C: Any
    D: Any
    z: Any
    delta_bias: Any
    initial: Any
    static_B: Any
    static_C: Any
    soft: Any  # softplus on Δ
    zoh: Any


class Gradients(NamedTuple):
    """Where one sequence's gradients go."""

    u: Any
    delta: Any
    A: Any
    B: Any  # (l n) when selective, (d n) when static
    C: Any
    D: Any
    z: Any
    delta_bias: Any
    initial: Any


@njit(nogil=True, error_model="numpy")
def scan_forward(
    first, last, groups, spans, u, delta, A, B, C, D, z, delta_bias, initial, static_B, static_C, soft, zoh, y, final
):
    """Fill y (b l d), add to final (s d n), for the tiles of sequences that are counted `first` to `last`.

    Row i of `spans` (s 3) is the batch row, begin and end of sequence i; all tiles times s are to be done in the end.
    """
    sequences, channels = len(spans), groups * width(u)
    for unit in range(first, last):
        x = Inputs(u, delta, A, B, C, D, z, delta_bias, initial, static_B, static_C, soft, zoh)
        i, c0 = unit % sequences, unit // sequences * channels
        tile, state = tile_at(x, c0, groups), initial_columns(x, i, c0, groups)
        _walk(x, tile, spans[i], state, y)
        drain(state, final[i], c0)


@njit(nogil=True, error_model="numpy")
def scan_backward(
    first, last, groups, spans, u, delta, A, B, C, D, z, delta_bias, initial, static_B, static_C, soft, zoh, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial, down, across,
):  # fmt: skip
    """Fill du, ddelta, dz (b l d), and add to the other gradients, for the parts counted `first` to `last`.

    The tiles are dealt in order to `down` parts, and the sequences to `across` parts, and each part sums for itself:
    dA (across d n), dD and ddelta_bias (across d), dB and dC (down b l n) when selective, (1 across d n) when static.
    """
    channels = groups * width(u)
    tiles, sequences = -(-u.shape[2] // channels), len(spans)
    for unit in range(first, last):
        x = Inputs(u, delta, A, B, C, D, z, delta_bias, initial, static_B, static_C, soft, zoh)
        p, q = unit // across, unit % across
        for c0 in range(tiles * p // down * channels, tiles * (p + 1) // down * channels, channels):
            for i in range(sequences * q // across, sequences * (q + 1) // across):
                dx = Gradients(
                    du, ddelta, dA[q], dB[0, q] if static_B else dB[p, spans[i, 0]],
                    dC[0, q] if static_C else dC[p, spans[i, 0]], dD[q], dz, ddelta_bias[q], dinitial[i],
                )  # fmt: skip
                tile, state = tile_at(x, c0, groups), initial_columns(x, i, c0, groups)
                heads = np.empty((-(-(spans[i, 2] - spans[i, 1]) // CHUNK), *state.shape), state.dtype)
                _there(x, tile, spans[i], state, heads)
                _and_back(x, tile, spans[i], heads, scratch_for(x, tile, dfinal[i]), dy, dx)


@kernel
def _walk(x, tile, span, state, y):
    """Fill y, and take the state to the end."""
    row, begin, end = span[0], span[1], span[2]
    for t0 in range(begin, end, CHUNK):
        count = min(CHUNK, end - t0)
        for g0 in range(0, len(state), GROUPS):
            few = part(tile, g0)
            prepare(x, few, row, t0, count)
            for g in range(len(few.a)):
                advance(x, few, g, row, t0, count, state[g0 + g], True, y)
            gate(x, few, row, t0, count, y)


@kernel
def _there(x, tile, span, state, heads):
    """Fill `heads` with the state before each chunk: (chunks, groups, n * width)."""
    row, begin = span[0], span[1]
    for q in range(len(heads)):
        t0 = begin + q * CHUNK
        for g0 in range(0, len(state), GROUPS):
            few = part(tile, g0)
            if q < len(heads) - 1:
                prepare(x, few, row, t0, CHUNK)
            for g in range(len(few.a)):
                copy(state[g0 + g], heads[q, g0 + g])
                if q < len(heads) - 1:
                    advance(x, few, g, row, t0, CHUNK, state[g0 + g], False, x.u)


@kernel
def _and_back(x, tile, span, heads, scratch, dy, dx):
    row, begin, end = span[0], span[1], span[2]
    for q in range(len(heads) - 1, -1, -1):
        t0 = begin + q * CHUNK
        count = min(CHUNK, end - t0)
        for g0 in range(0, len(tile.a), GROUPS):
            few, back = part(tile, g0), scratch_part(scratch, g0)
            prepare(x, few, row, t0, count)
            seed(x, few, row, t0, count, dy)
            _retrace(x, few, back, row, t0, count, heads[q, g0 : g0 + GROUPS], dy, dx)
            settle(x, few, row, t0, count, dx)
        # Sums over l are drained chunk by chunk, so that their rounding errors don't grow with l.
        drain(scratch.da, dx.A, tile.c0)
        if x.static_B:
            drain(scratch.db, dx.B, tile.c0)
        if x.static_C:
            drain(scratch.dc, dx.C, tile.c0)
    drain(scratch.carry, dx.initial, tile.c0)


@kernel
def _retrace(x, tile, scratch, row, t0, count, heads, dy, dx):
    """Each state of the chunk forwards once more and back; the gradients of B and C are added up over the tile."""
    calm, dots, k, n = True, x.z.size > 0, 0, x.A.shape[1]
    for g in range(len(tile.a)):
        calm = calm and tile.calm[g]
    while k < n:
        # The next chunk's rows to read, and this one's to write.
        wanted, filled = (x.u, x.delta, x.z, dy)[k // BLOCK % 4], (dx.u, dx.delta, dx.z, dx.z)[k // BLOCK % 4]
        states = BLOCK if calm and k + BLOCK <= n else 1
        for g in range(len(tile.a)):
            if states == BLOCK:
                advance_four(x, tile, g, k, row, t0, count, heads[g], scratch.trace, dots, wanted, -CHUNK)
                retreat_four(x, tile, scratch, g, k, row, t0, count, filled)
            else:
                advance_one(x, tile, g, k, row, t0, count, heads[g], scratch.trace, dots)
                retreat_one(x, tile, scratch, g, k, row, t0, count)
        if not x.static_B:
            total_lines(scratch.trace, LINES_B, dx.B, t0, count, k, states, x.u)
        if not x.static_C:
            total_lines(scratch.trace, LINES_C, dx.C, t0, count, k, states, x.u)
        k += states
