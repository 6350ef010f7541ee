"""How a tile of channels gets into the scratch memory of the CPU kernels, and out of it again.

A tile is `groups` times `width` neighbouring channels. Columns (groups, n * width) have the channels of one state side
by side; rows (groups, CHUNK * ROW * width) have, step by step, ROW numbers of each channel.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from .lanes import add_totals, fill, lane, load, store, total, width, with_lane

CHUNK = 32  # steps taken at a time
GROUPS = 8  # groups whose rows of a chunk are in the cache together
BLOCK = 4  # states taken at a time

# What a row holds of a step: u, Δ, Δ u, C·h; on the way back the gradients of the ungated y, of Δ B u over Δ B, of Δ
# and of the gate. They lie in one row because a load waits for a store before it at the same offset of another page.
ROW = 8
U, STEP, DRIVE, DOT, SEED, DGAIN, DSTEP, DGATE = range(ROW)
# What a row of the trace holds of a step, of BLOCK states each: h before it, decays, the gradients of B and of C.
TRACE = 4 * BLOCK
DECAYS, LINES_B, LINES_C = BLOCK, 2 * BLOCK, 3 * BLOCK

# Inside a loop over steps Numba's reference counts would cost more than the arithmetic, and so would calls.
kernel = register_jitable(_nrt=False)
inline = register_jitable(_nrt=False, forceinline=True)


class Tile(NamedTuple):
    """Neighbouring channels: columns of A, and of B and C where they are static; one chunk's rows of each group."""

    c0: Any  # its first channel
    a: Any
    b: Any
    c: Any
    reach: Any  # (groups, 2) the least and the largest real part of A
    rows: Any
    low: Any  # (groups, width) the least and the largest Δ in the chunk
    high: Any
    calm: Any  # (groups) whether the chunk's rates are where `lane_math.decay` holds


class Scratch(NamedTuple):
    """What a tile needs on its way back."""

    carry: Any  # columns: the gradient of the state
    da: Any
    db: Any
    dc: Any
    trace: Any  # rows of one group's states; the gradients in them are summed over groups


@inline
def part(tile, g0):
    """At most GROUPS groups of a tile, from group g0 on; they share its rows."""
    g1 = min(g0 + GROUPS, len(tile.a))
    return Tile(
        tile.c0 + g0 * tile.low.shape[1], tile.a[g0:g1], tile.b[g0:g1], tile.c[g0:g1], tile.reach[g0:g1],
        tile.rows, tile.low, tile.high, tile.calm,
    )  # fmt: skip


@inline
def scratch_part(scratch, g0):
    """What belongs to `part(tile, g0)`."""
    g1 = min(g0 + GROUPS, len(scratch.carry))
    return Scratch(
        scratch.carry[g0:g1], scratch.da[g0:g1], scratch.db[g0:g1], scratch.dc[g0:g1], scratch.trace,
    )  # fmt: skip


@inline
def load_four(array, i):
    """BLOCK neighbours of the lanes at element i, these first."""
    wide = width(array)
    return load(array, i), load(array, i + wide), load(array, i + 2 * wide), load(array, i + 3 * wide)


@inline
def store_four(array, i, v0, v1, v2, v3):
    """Put back what `load_four` gives."""
    wide = width(array)
    store(array, i, v0)
    store(array, i + wide, v1)
    store(array, i + 2 * wide, v2)
    store(array, i + 3 * wide, v3)


@inline
def read(line, c):
    """The lanes of `line` from channel c on, zeros beyond its last."""
    if c + width(line) <= line.size:
        return load(line, c)
    value = fill(line, 0.0)
    for j in range(line.size - c):
        value = with_lane(value, j, line[c + j])
    return value


@inline
def write(line, c, value):
    """Put lanes at channel c of `line`, as far as it has channels."""
    if c + width(line) <= line.size:
        store(line, c, value)
    else:
        for j in range(line.size - c):
            line[c + j] = lane(value, j)


@inline
def add(line, c, value, wide):
    """Add lanes to `line`, which may be more precise than they are, from channel c on, as far as it has channels."""
    for j in range(min(wide, line.size - c)):
        line[c + j] += lane(value, j)


@register_jitable
def gather(matrix, c0, groups, like):
    """The rows of `matrix` (d n) from channel c0 on as columns, zeros beyond the last."""
    wide, n = width(like), matrix.shape[1]
    columns = zeros((groups, n * wide), matrix)
    for c in range(c0, min(c0 + groups * wide, len(matrix))):
        g, j = (c - c0) // wide, (c - c0) % wide
        for k in range(n):
            columns[g, k * wide + j] = matrix[c, k]
    return columns


@kernel
def drain(columns, matrix, c0):
    """Add columns to the rows of `matrix` (d n), which may be more precise, from channel c0 on, and clear them."""
    wide, n = width(columns), matrix.shape[1]
    for c in range(c0, min(c0 + len(columns) * wide, len(matrix))):
        g, j = (c - c0) // wide, (c - c0) % wide
        for k in range(n):
            matrix[c, k] += columns[g, k * wide + j]
    for g in range(len(columns)):
        for k in range(n):
            store(columns[g], k * wide, fill(columns, 0.0))


@register_jitable
def zeros(shape, like):
    """Zeros of the dtype of `like` that begin at a cache line."""
    new = aligned(shape[0] * shape[1], like)
    for j in range(new.size):
        new[j] = 0
    return new.reshape(shape)


@kernel
def copy(source, target):
    """Copy all of `source`; what Numba makes of an assignment of slices doubles the time to compile."""
    for j in range(source.size):
        target[j] = source[j]


@register_jitable
def aligned(count, like):
    """Memory of the dtype of `like` that begins at a cache line."""
    spare = 64 // like.itemsize
    raw = np.empty(count + spare, like.dtype)
    skip = (-raw.ctypes.data // like.itemsize) % spare
    return raw[skip : skip + count]


@kernel
def total_lines(trace, place, matrix, t0, count, k, states, like):
    """Add the lanes' sum of each step to `states` columns of `matrix` (l n) from the k-th on, and clear the lines."""
    wide, nothing = width(like), fill(trace, 0.0)
    for t in range(count):
        i = (t * TRACE + place) * wide
        if states == BLOCK:
            v0, v1, v2, v3 = load_four(trace, i)
            add_totals(matrix[t0 + t], k, v0, v1, v2, v3)
            store_four(trace, i, nothing, nothing, nothing, nothing)
        else:
            matrix[t0 + t, k] += total(load(trace, i))
            store(trace, i, nothing)


@register_jitable
def tile_at(x, c0, groups):
    """The tile that begins at channel c0, its columns read from the inputs `x`."""
    b, c = (x.B[0] if x.static_B else x.B[0, :, :0]), (x.C[0] if x.static_C else x.C[0, :, :0])
    a, wide, few = gather(x.A, c0, groups, x.u), width(x.u), min(groups, GROUPS)
    return Tile(
        c0, a, gather(b, c0, groups, x.u), gather(c, c0, groups, x.u), _reach(a, x.u),
        zeros((few, CHUNK * ROW * wide), x.u), zeros((few, wide), x.u), zeros((few, wide), x.u),
        np.empty(few, np.bool_),
    )  # fmt: skip


@register_jitable
def _reach(a, like):
    bounds = np.empty((len(a), 2), like.dtype)
    for g in range(len(a)):
        low = high = a[g, 0].real
        for j in range(a.shape[1]):
            low, high = min(low, a[g, j].real), max(high, a[g, j].real)
        bounds[g, 0], bounds[g, 1] = low, high
    return bounds


@register_jitable
def initial_columns(x, i, c0, groups):
    """The state before the first step of sequence i."""
    return gather(x.initial[i] if x.initial.size else x.A[:0], c0, groups, x.u)


@register_jitable
def scratch_for(x, tile, dfinal):
    """What the tile needs to go back along its sequence."""
    groups, wide = len(tile.a), width(x.u)
    return Scratch(
        gather(dfinal, tile.c0, groups, x.u),
        zeros(tile.a.shape, x.A), zeros(tile.b.shape, x.A), zeros(tile.c.shape, x.A),
        zeros((1, (CHUNK + 1) * TRACE * wide), x.A)[0],
    )  # fmt: skip
