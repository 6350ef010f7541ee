"""How a tile of channels gets into the scratch memory of the CPU kernels, and out of it again.

A tile is `groups` times `width` neighbouring channels. Its scratch is laid out as rows (groups, CHUNK * width), with
the channels of one step side by side, and columns (groups, n * width), with the channels of one state side by side.
"""

import numpy as np
from numba.extending import register_jitable

from .lanes import fill, lane, load, store, width, with_lane

CHUNK = 32  # steps taken at a time

# Inside a loop over steps Numba's reference counts would cost more than the arithmetic, and so would calls.
kernel = register_jitable(_nrt=False)
inline = register_jitable(_nrt=False, forceinline=True)


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
def add(line, c, value):
    """Add lanes to `line` from channel c on, as far as it has channels."""
    write(line, c, read(line, c) + value)


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
def scatter_add(columns, matrix, c0):
    """Add columns to the rows of `matrix` (d n) from channel c0 on."""
    groups, count = columns.shape
    wide = count // matrix.shape[1]
    for g in range(groups):
        for j in range(count):
            c = c0 + g * wide + j % wide
            if c < len(matrix):
                matrix[c, j // wide] += columns[g, j]


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
