"""The selective scan and its gradients on the CPU, streaming: a few steps of a few channels at a time, in cache.

A tile of channels goes along one sequence in chunks of steps. Forward, `_prepare` reads a chunk's u and Δ, then
`_advance` moves the state over its steps and writes y. Backward, a first sweep keeps the state before each chunk; then
the chunks are taken from the last to the first, each once more forwards, leaving its states and decays in cache, and
from there in reverse (`_retreat`). So memory grows with l only by one state a chunk of the tiles being computed.

Threads share out the tiles, and which tile does what depends on shapes alone, so the number of threads changes no bit.
Sums over tiles and over sequences are left to the caller as partial sums, in an order that is fixed as well.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .cpu_tiles import CHUNK, add, copy, drain, initial_columns, inline, kernel, read, scratch_for, tile_at, write
from .lanes import (
    conjugate,
    exp,
    fill,
    load,
    pairs,
    phi,
    phi_slope,
    prefetch,
    real,
    sigmoid,
    softplus,
    softplus_slope,
    store,
    total,
    width,
)

PLAIN = False, False, False  # selective B, selective C, Euler


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
        _walk(x, tile, spans[i], state, np.empty((0, 0, 0), state.dtype), y)
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
                _there_and_back(x, tile, spans[i], state, scratch_for(x, tile, spans[i], dfinal[i]), dy, dx)


@kernel
def _there_and_back(x, tile, span, state, scratch, dy, dx):
    row, begin, end = span[0], span[1], span[2]
    _walk(x, tile, span, state, scratch.heads, dy[:0])
    for q in range(len(scratch.heads) - 1, -1, -1):
        t0 = begin + q * CHUNK
        count = min(CHUNK, end - t0)
        _prepare(x, tile, row, t0, count)
        for g in range(len(tile.a)):
            copy(scratch.heads[q, g], scratch.history)
            stride = tile.a.shape[1]
            _advance(x, tile, g, row, t0, count, -CHUNK, scratch.history, stride, scratch.decays, dy[:0])
            _retreat(x, tile, g, row, t0, count, scratch, dy, dx)
        # Sums over l are drained chunk by chunk, so that their rounding errors don't grow with l.
        drain(scratch.da, dx.A, tile.c0)
        if x.static_B:
            drain(scratch.db, dx.B, tile.c0)
        if x.static_C:
            drain(scratch.dc, dx.C, tile.c0)
    drain(scratch.carry, dx.initial, tile.c0)


@kernel
def _walk(x, tile, span, state, heads, y):
    """Take a tile along its sequence: fill y if it is not empty, else `heads` with the state before each chunk."""
    row, begin, end = span[0], span[1], span[2]
    for t0 in range(begin, end, CHUNK):
        count = min(CHUNK, end - t0)
        if heads.size:
            for g in range(len(state)):
                copy(state[g], heads[(t0 - begin) // CHUNK, g])
        if y.size or t0 + CHUNK < end:
            _prepare(x, tile, row, t0, count)
            for g in range(len(state)):
                _advance(x, tile, g, row, t0, count, CHUNK, state[g], 0, state[g], y)


@kernel
def _prepare(x, tile, row, t0, count):
    """Read u and form Δ, for all of the tile's channels of one step at a time, as they lie in memory."""
    wide = width(x.u)
    for t in range(count):
        for g in range(len(tile.a)):
            step = _raw_step(x, row, t0 + t, tile.c0 + g * wide)
            store(tile.inputs[g], t * wide, read(x.u[row, t0 + t], tile.c0 + g * wide))
            store(tile.steps[g], t * wide, softplus(step) if x.soft else step)


@inline
def _raw_step(x, row, t, c):
    """Δ before its softplus."""
    step = read(x.delta[row, t], c)
    return step + read(x.delta_bias, c) if x.delta_bias.size else step


@kernel
def _advance(x, tile, g, row, t0, count, ahead, state, stride, decays, y):
    """Move the state of one group of lanes over a chunk: h_t = exp(Δ_t A) h_{t-1} + Δ_t φ_t B_t u_t; write y or C·h.

    With each step the state goes `stride` elements on: by 0 it moves in place, else it leaves its history, and its
    decays beside. The released models' case has a loop without questions, which is a tenth faster.
    """
    a, b, c, inputs, steps, outputs = tile.a[g], tile.b[g], tile.c[g], tile.inputs[g], tile.steps[g], tile.outputs[g]
    n, wide, channel = x.A.shape[1], width(x.u), tile.c0 + g * width(x.u)
    options = x.static_B, x.static_C, x.zoh
    for t in range(count):
        _prefetch(x, row, t0 + t + ahead, channel)
        B, C = x.B[row, t0 + t], x.C[row, t0 + t]
        u, step, dot = load(inputs, t * wide), load(steps, t * wide), fill(outputs, 0.0)
        if x.static_B or x.static_C or x.zoh:
            for k in range(n):
                dot = dot + _update(k, step, step * u, a, b, c, B, C, state, t * stride, stride, decays, options)
        else:
            for k in range(n):
                dot = dot + _update(k, step, step * u, a, b, c, B, C, state, t * stride, stride, decays, PLAIN)
        if y.size:
            write(y[row, t0 + t], channel, _gated(x, row, t0 + t, channel, _ungated(x, channel, u, dot)))
        else:
            store(outputs, t * wide, dot)


@inline
def _update(k, step, drive, a, b, c, B, C, state, at, stride, decays, options):
    """One state of one step; returns its share of C·h."""
    static_B, static_C, zoh = options
    j = k * width(a)
    rate = step * load(a, j)
    decay = exp(rate)
    gain = drive * _coefficient(static_B, b, j, B, k)
    if zoh:
        gain = gain * phi(rate)
    h = decay * load(state, at + j) + gain
    store(state, at + stride + j, h)
    if stride:
        store(decays, at + j, decay)
    return real(h * _coefficient(static_C, c, j, C, k))


@inline
def _coefficient(static, column, j, line, k):
    """B or C of one state, the same in all lanes where it is selective."""
    return load(column, j) if static else fill(column, line[k])


@inline
def _prefetch(x, row, t, c):
    """Ask for the rows that the next chunk will read, while there is arithmetic to wait behind."""
    if 0 <= t < x.u.shape[1]:
        prefetch(x.u[row, t], c)
        prefetch(x.delta[row, t], c)
        if x.z.size:
            prefetch(x.z[row, t], c)


@inline
def _ungated(x, c, u, dot):
    """C·h + D u, for a complex state 2 Re(C·h) + D u."""
    dot = dot * pairs(x.A)
    return dot + read(x.D, c) * u if x.D.size else dot


@inline
def _gated(x, row, t, c, value):
    if x.z.size:
        gate = read(x.z[row, t], c)
        value = value * gate * sigmoid(gate)
    return value


@kernel
def _retreat(x, tile, g, row, t0, count, scratch, dy, dx):
    """The gradients of `_advance` over the same chunk, from its last step to its first.

    `scratch.carry` comes in as the gradient of the state after the chunk and goes out as that of the state before it.
    """
    a, b, c, inputs, steps, outputs = tile.a[g], tile.b[g], tile.c[g], tile.inputs[g], tile.steps[g], tile.outputs[g]
    carry, da, db, dc = scratch.carry[g], scratch.da[g], scratch.db[g], scratch.dc[g]
    history, decays = scratch.history, scratch.decays
    wide, channel, stride = width(x.u), tile.c0 + g * width(x.u), carry.size
    dD, dbias = fill(inputs, 0.0), fill(inputs, 0.0)
    for t in range(count - 1, -1, -1):
        u, step = load(inputs, t * wide), load(steps, t * wide)
        if t0 >= CHUNK:
            prefetch(dy[row, t0 + t - CHUNK], channel)
        seed = _retreat_gate(x, row, t0 + t, channel, u, load(outputs, t * wide), dy, dx)
        ddot, du, dstep = seed * pairs(x.A), fill(inputs, 0.0), fill(inputs, 0.0)
        for k in range(x.A.shape[1]):
            j, i = k * wide, t * stride + k * wide
            dh = load(carry, j) + conjugate(_coefficient(x.static_C, c, j, x.C[row, t0 + t], k)) * ddot
            back = conjugate(load(decays, i)) * dh
            store(carry, j, back)
            # The rate ΔA acts through its decay, and with ZOH through φ as well.
            drate = conjugate(load(history, i)) * back
            dstep = dstep + real(conjugate(load(a, j)) * drate)
            dgain = conjugate(_coefficient(x.static_B, b, j, x.B[row, t0 + t], k)) * dh
            dB = step * u * dh
            if x.zoh:
                rate = step * load(a, j)
                # d(Δ φ(ΔA))/dΔ is the decay again.
                dstep = dstep + u * real(conjugate(load(decays, i)) * dgain)
                drate = drate + conjugate(phi_slope(rate)) * (step * u) * dgain
                dgain, dB = conjugate(phi(rate)) * dgain, conjugate(phi(rate)) * dB
            du = du + real(dgain)
            store(da, j, load(da, j) + step * drate)
            _accumulate(x.static_B, db, j, dx.B, t0 + t, k, dB)
            _accumulate(x.static_C, dc, j, dx.C, t0 + t, k, conjugate(load(history, i + stride)) * ddot)
        dD = dD + u * seed
        dbias = dbias + _retreat_inputs(x, row, t0 + t, channel, u, step, seed, du, dstep, dx)
    if x.D.size:
        add(dx.D, channel, dD, wide)
    if x.delta_bias.size:
        add(dx.delta_bias, channel, dbias, wide)


@inline
def _accumulate(static, column, j, lines, t, k, value):
    """Add to the gradient of B or C: a static one has a sum for each channel, a selective one for each step."""
    if static:
        store(column, j, load(column, j) + value)
    else:
        lines[t, k] += total(value)


@inline
def _retreat_gate(x, row, t, c, u, dot, dy, dx):
    """Write dz and return the gradient of y before its gate; silu'(z) = σ(z) (1 + z (1 - σ(z)))."""
    seed = read(dy[row, t], c)
    if x.z.size:
        gate = read(x.z[row, t], c)
        share = sigmoid(gate)
        write(dx.z[row, t], c, seed * _ungated(x, c, u, dot) * share * (gate * (1.0 - share) + 1.0))
        seed = seed * gate * share
    return seed


@inline
def _retreat_inputs(x, row, t, c, u, step, seed, dgain, dstep, dx):
    """Write du and dΔ of one step; returns dΔ."""
    du = step * dgain
    if x.D.size:
        du = du + read(x.D, c) * seed
    if not x.zoh:
        dstep = dstep + u * dgain
    if x.soft:
        dstep = dstep * softplus_slope(_raw_step(x, row, t, c))
    write(dx.u[row, t], c, du)
    write(dx.delta[row, t], c, dstep)
    return dstep
