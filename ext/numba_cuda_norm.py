"""The root-mean-square norm of the numba-cuda backend: a block takes rows one after the other."""

import math
from functools import cache, partial
from typing import Any

import torch
from numba import types
from torch import Tensor

from .numba_cuda_arrays import ELEMENT, compiled, cuda, device_function, launch, power_of_two_above
from .numba_cuda_math import REAL, elements
from .reference import accumulation_dtype

THREADS = 256  # of a block, at most
BLOCKS = 1024  # at most, and so parts of the gradient of the weight


def norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `reference.norm_forward`."""
    threads, y = _threads(x), x.new_empty(x.shape, dtype=weight.dtype)
    kernel = partial(_forward, x.dtype, weight.dtype, threads)
    launch(kernel, x.device, min(BLOCKS, len(x)), threads, x, weight, float(epsilon), y)
    return y


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `reference.norm_backward`."""
    threads, blocks, dx = _threads(x), min(BLOCKS, len(x)), x.new_empty(x.shape)
    parts = x.new_zeros(blocks, x.shape[1], dtype=accumulation_dtype(x.dtype))
    kernel = partial(_backward, x.dtype, weight.dtype, threads)
    launch(kernel, x.device, blocks, threads, dy, x, weight, float(epsilon), dx, parts)
    return dx, parts.sum(0, dtype=torch.float64).to(weight.dtype)


@device_function
def _block_sum(partial, value, thread, threads):
    """The sum of all threads' values, added up by halves; `partial` is theirs to use again after it."""
    cuda.syncthreads()
    partial[thread] = value
    cuda.syncthreads()
    half = threads // 2
    while half > 0:
        if thread < half:
            partial[thread] += partial[thread + half]
        cuda.syncthreads()
        half //= 2
    return partial[0]


def _threads(x: Tensor) -> int:
    return min(THREADS, power_of_two_above(x.shape[1]))


@cache
def _forward(dtype: torch.dtype, weight_dtype: torch.dtype, threads: int) -> Any:
    read, read_weight, narrow = elements(dtype).widen, elements(weight_dtype).widen, elements(weight_dtype).narrow
    real, number, zero = ELEMENT[accumulation_dtype(dtype)], REAL[dtype], REAL[dtype](0)

    @compiled([(dtype, 2), (weight_dtype, 1), types.float64, (weight_dtype, 2)], threads)
    def kernel(x, weight, epsilon, y):
        partial = cuda.shared.array(threads, real)
        thread, m = cuda.threadIdx.x, x.shape[1]
        for row in range(cuda.blockIdx.x, x.shape[0], cuda.gridDim.x):
            total = zero
            for j in range(thread, m, threads):
                total += read(x[row, j]) * read(x[row, j])
            scale = number(1 / math.sqrt(_block_sum(partial, total, thread, threads) / m + epsilon))
            for j in range(thread, m, threads):
                y[row, j] = narrow(read(x[row, j]) * scale * read_weight(weight[j]))

    return kernel


@cache
def _backward(dtype: torch.dtype, weight_dtype: torch.dtype, threads: int) -> Any:
    element, read_weight = elements(dtype), elements(weight_dtype).widen
    real, number, zero, read, narrow = ELEMENT[accumulation_dtype(dtype)], REAL[dtype], REAL[dtype](0), *element

    @compiled(
        [(weight_dtype, 2), (dtype, 2), (weight_dtype, 1), types.float64, (dtype, 2), (accumulation_dtype(dtype), 2)],
        threads,
    )
    def kernel(dy, x, weight, epsilon, dx, parts):
        partial = cuda.shared.array(threads, real)
        thread, m, block = cuda.threadIdx.x, x.shape[1], cuda.blockIdx.x
        for row in range(block, x.shape[0], cuda.gridDim.x):
            squares, products = zero, zero
            for j in range(thread, m, threads):
                value = read(x[row, j])
                squares += value * value
                products += value * read_weight(dy[row, j]) * read_weight(weight[j])
            scale = number(1 / math.sqrt(_block_sum(partial, squares, thread, threads) / m + epsilon))
            share = _block_sum(partial, products, thread, threads) * scale * scale / number(m)
            for j in range(thread, m, threads):
                grad, value = read_weight(dy[row, j]), read(x[row, j])
                dx[row, j] = narrow(scale * (grad * read_weight(weight[j]) - value * share))
                parts[block, j] += grad * value * scale

    return kernel
