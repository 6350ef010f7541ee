"""How a tile of channels gets into the scratch memory of the CPU kernels, and out of it again.

A tile is `groups` times `width` neighbouring channels. Its scratch is laid out as rows (groups, CHUNK * width), with
the channels of one step side by side, and columns (groups, n * width), with the channels of one state side by side.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from .lanes import fill, lane, load, store, width, with_lane

CHUNK = 32  # steps taken at a time

# Inside a loop over steps Numba's reference counts would cost more than the arithmetic, and so would calls.
kernel = register_jitable(_nrt=False)
inline = register_jitable(_nrt=False, forceinline=True)


class Tile(NamedTuple):
    """A tile's scratch: columns of A, and of B and C where they are static; rows of u, Δ and C·h."""

    c0: Any  # its first channel
    a: Any
    b: Any
    c: Any
    inputs: Any
    steps: Any
    outputs: Any


class Scratch(NamedTuple):
    """What a tile needs on its way back."""

    carry: Any  # columns: the gradient of the state
    da: Any
    db: Any
    dc: Any
    history: Any  # one group's states in a chunk, and the one before it
    decays: Any
    heads: Any  # the state before each chunk, (chunks, groups, n * width)


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
    columns = aligned(groups * n * wide, matrix).reshape((groups, n * wide))
    for g in range(groups):
        for j in range(n * wide):
            c = c0 + g * wide + j % wide
            columns[g, j] = matrix[c, j // wide] if c < len(matrix) else 0
    return columns


@kernel
def drain(columns, matrix, c0):
    """Add columns to the rows of `matrix` (d n), which may be more precise, from channel c0 on, and clear them."""
    (groups, count), wide = columns.shape, width(columns)
    for g in range(groups):
        for j in range(count):
            c = c0 + g * wide + j % wide
            if c < len(matrix):
                matrix[c, j // wide] += columns[g, j]
            columns[g, j] = 0


@register_jitable
def zeros(columns):
    """Columns of zeros."""
    new = aligned(columns.size, columns).reshape(columns.shape)
    for g in range(len(columns)):
        for j in range(columns.shape[1]):
            new[g, j] = 0
    return new


@register_jitable
def rows(like, groups):
    """Uninitialised rows of the dtype of `like`."""
    return aligned(groups * CHUNK * width(like), like).reshape((groups, CHUNK * width(like)))


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


@register_jitable
def tile_at(x, c0, groups):
    """The tile that begins at channel c0, its columns read from the inputs `x`."""
    b, c = (x.B[0] if x.static_B else x.B[0, :, :0]), (x.C[0] if x.static_C else x.C[0, :, :0])
    return Tile(
        c0, gather(x.A, c0, groups, x.u), gather(b, c0, groups, x.u), gather(c, c0, groups, x.u),
        rows(x.u, groups), rows(x.u, groups), rows(x.u, groups),
    )  # fmt: skip


@register_jitable
def initial_columns(x, i, c0, groups):
    """The state before the first step of sequence i."""
    return gather(x.initial[i] if x.initial.size else x.A[:0], c0, groups, x.u)


@register_jitable
def scratch_for(x, tile, span, dfinal):
    """What the tile needs to go along its sequence and back."""
    groups, stride = tile.a.shape
    return Scratch(
        gather(dfinal, tile.c0, groups, x.u), zeros(tile.a), zeros(tile.b), zeros(tile.c),
        aligned((CHUNK + 1) * stride, x.A), aligned(CHUNK * stride, x.A),
        np.empty((-(-(span[2] - span[1]) // CHUNK), groups, stride), x.A.dtype),
    )  # fmt: skip
