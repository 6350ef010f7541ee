"""The kernels of the numba-cuda convolution: a thread takes one channel through a run of steps, inputs in a window.

Nothing is exchanged between threads. Packed sequences are found by bisection of their bounds.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types

from .numba_cuda_arrays import ELEMENT, compiled, cuda, device_function
from .numba_cuda_math import REAL, elements, functions
from .numba_cuda_plan import BIAS, INITIAL, PACKED

RUN = 64  # steps of a thread
THREADS = 128  # of a block, at most


class Kind(NamedTuple):
    """What a kernel of the convolution is compiled for."""

    dtype: torch.dtype  # of x and the states
    weight: torch.dtype  # of the weight and the bias
    k: int
    channels: int  # of a block, which has one thread each
    silu: bool


def codes(kind: Kind) -> list[Any]:
    """x, weight, bias, initial_state, bounds, given."""
    return [(kind.dtype, 3), (kind.weight, 2), (kind.weight, 1), (kind.dtype, 3), (torch.int32, 1), types.int64]


@cache
def conv_forward(kind: Kind) -> Any:
    """y; blocks are (b, runs, blocks of channels)."""
    k, real, narrow, sigmoid = kind.k, ELEMENT[_real(kind)], elements(kind.dtype).narrow, _sigmoid(kind)
    silu, filtered, load, fill, shift = kind.silu, _filtered(kind), _taps(kind), _fill(kind), _shift(kind)
    read = elements(kind.dtype).widen
    run_of = _run_of(kind)

    @compiled([*codes(kind), (kind.dtype, 3)], kind.channels)
    def kernel(x, weight, bias, initial, bounds, given, y):
        taps = cuda.local.array(k, real)
        window = cuda.local.array(k, real)
        batch, first, channel = run_of(x.shape[1], x.shape[2], cuda.blockIdx.x, cuda.threadIdx.x)
        if channel >= x.shape[2]:
            return
        offset = load(weight, bias, given, channel, taps)
        row, begin, end = _row_at(bounds, given, batch, first, x.shape[1])
        fill(x, initial, given, batch, row, begin, first, channel, window)
        for t in range(first, min(first + RUN, x.shape[1])):
            if t >= end:
                row, begin, end = _row_at(bounds, given, batch, t, x.shape[1])
                fill(x, initial, given, batch, row, begin, t, channel, window)
            window[k - 1] = read(x[batch, t, channel])
            total = filtered(taps, window) + offset
            if silu:
                total *= sigmoid(total)
            y[batch, t, channel] = narrow(total)
            shift(window)

    return kernel


@cache
def conv_grads(kind: Kind) -> Any:
    """The gradients before the activation, a run's part of those of the taps (b runs, k, d) and bias (b runs, d)."""
    k, real, element, sigmoid = kind.k, ELEMENT[_real(kind)], elements(kind.dtype), _sigmoid(kind)
    silu, filtered, load, fill, shift = kind.silu, _filtered(kind), _taps(kind), _fill(kind), _shift(kind)
    read, one, zero = element.widen, REAL[kind.dtype](1), REAL[kind.dtype](0)
    run_of = _run_of(kind)

    @compiled([*codes(kind), (kind.dtype, 3), (_real(kind), 3), (_real(kind), 3), (_real(kind), 2)], kind.channels)
    def kernel(x, weight, bias, initial, bounds, given, dy, grads, dweight, dbias):
        taps = cuda.local.array(k, real)
        window = cuda.local.array(k, real)
        dtaps = cuda.local.array(k, real)
        batch, first, channel = run_of(x.shape[1], x.shape[2], cuda.blockIdx.x, cuda.threadIdx.x)
        if channel >= x.shape[2]:
            return
        offset, doffset = load(weight, bias, given, channel, taps), zero
        for j in range(k):
            dtaps[j] = zero
        row, begin, end = _row_at(bounds, given, batch, first, x.shape[1])
        fill(x, initial, given, batch, row, begin, first, channel, window)
        for t in range(first, min(first + RUN, x.shape[1])):
            if t >= end:
                row, begin, end = _row_at(bounds, given, batch, t, x.shape[1])
                fill(x, initial, given, batch, row, begin, t, channel, window)
            window[k - 1] = read(x[batch, t, channel])
            grad = read(dy[batch, t, channel])
            if silu:
                total = filtered(taps, window) + offset
                share = sigmoid(total)
                grad *= share * (one + total * (one - share))
            grads[batch, t, channel] = grad
            doffset += grad
            for j in range(k):
                dtaps[j] += grad * window[j]
            shift(window)
        part = batch * ((x.shape[1] + RUN - 1) // RUN) + first // RUN
        for j in range(k):
            dweight[part, j, channel] = dtaps[j]
        dbias[part, channel] = doffset

    return kernel


@cache
def conv_inputs(kind: Kind) -> Any:
    """dx, from the gradients before the activation and of the final state."""
    k, element, spread, run_of = kind.k, elements(kind.dtype), _spread(kind), _run_of(kind)
    read, narrow = element.widen, element.narrow

    @compiled([(_real(kind), 3), (kind.weight, 2), (kind.dtype, 3), *codes(kind)[4:], (kind.dtype, 3)], kind.channels)
    def kernel(grads, weight, dfinal, bounds, given, dx):
        batch, first, channel = run_of(dx.shape[1], dx.shape[2], cuda.blockIdx.x, cuda.threadIdx.x)
        if channel >= dx.shape[2]:
            return
        row, begin, end = _row_at(bounds, given, batch, first, dx.shape[1])
        for t in range(first, min(first + RUN, dx.shape[1])):
            if t >= end:
                row, begin, end = _row_at(bounds, given, batch, t, dx.shape[1])
            total = spread(grads, weight, batch, begin, end, t, channel)
            if t >= end - (k - 1):
                total += read(dfinal[row, t - end + k - 1, channel])
            dx[batch, t, channel] = narrow(total)

    return kernel


@cache
def conv_state(kind: Kind) -> Any:
    """The final state: of each row the last k - 1 inputs, or what is left of its initial state; blocks are (rows)."""
    k, channels, narrow, zero = kind.k, kind.channels, elements(kind.dtype).narrow, REAL[kind.dtype](0)

    @compiled([*codes(kind), (kind.dtype, 3)], kind.channels)
    def kernel(x, weight, bias, initial, bounds, given, final):
        row = cuda.blockIdx.x
        batch, begin, end = _extent(bounds, given, row, x.shape[1])
        for channel in range(cuda.threadIdx.x, x.shape[2], channels):
            for j in range(k - 1):
                t = end - (k - 1) + j
                if t >= begin:
                    final[row, j, channel] = x[batch, t, channel]
                elif given & INITIAL:
                    final[row, j, channel] = initial[row, t - begin + k - 1, channel]
                else:
                    final[row, j, channel] = narrow(zero)

    return kernel


@cache
def conv_initial(kind: Kind) -> Any:
    """The gradient of the initial state; blocks are (rows)."""
    k, channels, element, spread = kind.k, kind.channels, elements(kind.dtype), _spread(kind)
    read, narrow = element.widen, element.narrow

    @compiled([(_real(kind), 3), (kind.weight, 2), (kind.dtype, 3), *codes(kind)[4:], (kind.dtype, 3)], kind.channels)
    def kernel(grads, weight, dfinal, bounds, given, dinitial):
        row = cuda.blockIdx.x
        batch, begin, end = _extent(bounds, given, row, grads.shape[1])
        for channel in range(cuda.threadIdx.x, dinitial.shape[2], channels):
            for j in range(k - 1):
                total = spread(grads, weight, batch, begin, end, begin + j - (k - 1), channel)
                if j >= end - begin:
                    total += read(dfinal[row, j - (end - begin), channel])
                dinitial[row, j, channel] = narrow(total)

    return kernel


def _real(kind: Kind) -> torch.dtype:
    return torch.float64 if kind.dtype == torch.float64 else torch.float32


def _sigmoid(kind: Kind) -> Any:
    return functions(kind.dtype, False).sigmoid


@device_function
def _extent(bounds, given, row, length):
    """The place in the batch of a row, and its first and last step."""
    if given & PACKED:
        return np.int64(0), np.int64(bounds[row]), np.int64(bounds[row + 1])
    return np.int64(row), np.int64(0), np.int64(length)


@device_function
def _row_at(bounds, given, batch, t, length):
    """The row that step t is in, and its first and last step."""
    if not given & PACKED:
        return np.int64(batch), np.int64(0), np.int64(length)
    low, high = 0, bounds.shape[0] - 2
    while low < high:
        middle = (low + high) // 2
        if bounds[middle + 1] > t:
            high = middle
        else:
            low = middle + 1
    return np.int64(low), np.int64(bounds[low]), np.int64(bounds[low + 1])


@cache
def _run_of(kind: Kind) -> Any:
    """The place in the batch, the first step and the channel of a thread."""
    channels = kind.channels

    def run(length, d, block, thread):
        across, runs = (d + channels - 1) // channels, (length + RUN - 1) // RUN
        place = block // across
        return place // runs, place % runs * RUN, block % across * channels + thread

    return device_function(run)


@cache
def _taps(kind: Kind) -> Any:
    """The taps of a channel; returns its bias."""
    k, read, zero = kind.k, elements(kind.weight).widen, REAL[kind.dtype](0)

    def load(weight, bias, given, channel, taps):
        for j in range(k):
            taps[j] = read(weight[channel, j])
        if given & BIAS:
            return read(bias[channel])
        return zero

    return device_function(load)


@cache
def _fill(kind: Kind) -> Any:
    """The k - 1 inputs before step t, which has a place left at the end."""
    k, read, zero = kind.k, elements(kind.dtype).widen, REAL[kind.dtype](0)

    def fill(x, initial, given, batch, row, begin, t, channel, window):
        for j in range(k - 1):
            at = t - (k - 1) + j
            window[j] = zero
            if at >= begin:
                window[j] = read(x[batch, at, channel])
            elif given & INITIAL:
                window[j] = read(initial[row, at - begin + k - 1, channel])

    return device_function(fill)


@cache
def _shift(kind: Kind) -> Any:
    k = kind.k

    def shift(window):
        for j in range(k - 1):
            window[j] = window[j + 1]

    return device_function(shift)


@cache
def _filtered(kind: Kind) -> Any:
    k, zero = kind.k, REAL[kind.dtype](0)

    def filtered(taps, window):
        total = zero
        for j in range(k):
            total += taps[j] * window[j]
        return total

    return device_function(filtered)


@cache
def _spread(kind: Kind) -> Any:
    """What comes back to the input at step t, which may lie before the first, from the outputs it went into."""
    k, read, zero = kind.k, elements(kind.weight).widen, REAL[kind.dtype](0)

    def spread(grads, weight, batch, begin, end, t, channel):
        total = zero
        for later in range(k):
            if begin <= t + later < end:
                total += read(weight[channel, k - 1 - later]) * grads[batch, t + later, channel]
        return total

    return device_function(spread)
