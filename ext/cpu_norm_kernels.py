"""The root-mean-square norm and its gradients on the CPU, a row at a time."""

import math

from numba import njit

from .cpu_tiles import add, aligned, inline, read, write
from .lanes import fill, load, store, total, width

ROWS = 64  # whose gradients of the weight are summed before they are added to a more precise sum


@njit(nogil=True, error_model="numpy")
def norm_forward(first, last, x, weight, epsilon, y):
    """Fill y (p m) for rows `first` to `last`."""
    wide, m = width(x), x.shape[1]
    for i in range(first, last):
        scale = _scale(x[i], epsilon)
        for c in range(0, m, wide):
            write(y[i], c, read(x[i], c) * scale * read(weight, c))


@njit(nogil=True, error_model="numpy")
def norm_backward(first, last, parts, x, weight, epsilon, dy, dx, dweight):
    """Fill dx (p m), and add to dweight (parts m), for the parts that are counted `first` to `last`."""
    wide, (rows, m) = width(x), x.shape
    sums = aligned(-(-m // wide) * wide, x)
    for part in range(first, last):
        for block in range(rows * part // parts, rows * (part + 1) // parts, ROWS):
            for c in range(0, m, wide):
                store(sums, c, fill(x, 0.0))
            for i in range(block, min(block + ROWS, rows * (part + 1) // parts)):
                scale = _scale(x[i], epsilon)
                dot = fill(x, 0.0)
                for c in range(0, m, wide):
                    dot = dot + read(dy[i], c) * read(weight, c) * read(x[i], c)
                pull = scale * scale * scale * total(dot) / m
                for c in range(0, m, wide):
                    value, grad = read(x[i], c), read(dy[i], c) * scale
                    store(sums, c, load(sums, c) + grad * value)
                    write(dx[i], c, grad * read(weight, c) - value * pull)
            for c in range(0, m, wide):
                add(dweight[part], c, load(sums, c), wide)


@inline
def _scale(line, epsilon):
    """1 / rms."""
    squares = fill(line, 0.0)
    for c in range(0, line.size, width(line)):
        value = read(line, c)
        squares = squares + value * value
    return 1.0 / math.sqrt(total(squares) / line.size + epsilon)
