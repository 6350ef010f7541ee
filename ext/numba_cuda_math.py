"""The arithmetic of the numba-cuda kernels, one set of device functions a dtype."""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .numba_cuda_arrays import device_function

REAL: dict[torch.dtype, Any] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float32,
    torch.bfloat16: np.float32,
}


class Elements(NamedTuple):
    """How the elements of a tensor are read and written."""

    widen: Any  # to the number that is calculated with
    narrow: Any  # back, rounded to nearest even


class Functions(NamedTuple):
    """Scalar functions on real (float32 or float64) numbers or, where it says "work", also on complex ones."""

    exp: Any  # of work
    phi: Any  # φ(x) of work, given x and exp(x)
    phi_slope: Any  # φ'(x) of work, given x, exp(x) and φ(x)
    conj: Any  # of work
    real_part: Any  # of work
    softplus: Any
    sigmoid: Any


@cache
def elements(dtype: torch.dtype) -> Elements:
    """Reading and writing of `dtype`, which may be complex."""
    if dtype == torch.bfloat16:
        return Elements(device_function(_bfloat16_to_float32), device_function(_float32_to_bfloat16))
    if dtype == torch.float16:
        return Elements(device_function(_to_float32), device_function(_to_float16))
    return Elements(device_function(_same), device_function(_same))


@cache
def functions(dtype: torch.dtype, is_complex: bool) -> Functions:
    """The functions for activations of `dtype` and real or complex dynamics."""
    real = REAL[dtype]
    exp = _complex_exp(real) if is_complex else _real_exp(real)
    size = _complex_size() if is_complex else device_function(_absolute)
    phi, slope = _phi(real, size)
    conj, real_part = (_conjugate, _real_part) if is_complex else (_same, _same)
    softplus, sigmoid = _gates(real)
    return Functions(exp, phi, slope, device_function(conj), device_function(real_part), softplus, sigmoid)


def _same(x):
    return x


def _absolute(x):
    return abs(x)


def _conjugate(x):
    return x.conjugate()


def _real_part(x):
    return x.real


def _to_float32(x):
    return np.float32(x)


def _to_float16(x):
    return np.float16(x)


def _bfloat16_to_float32(bits):
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


def _float32_to_bfloat16(x):
    bits = np.float32(x).view(np.int32)
    if (bits & np.int32(0x7FFFFFFF)) > np.int32(0x7F800000):
        # Rounding could carry a NaN over to an infinity.
        return np.int16((bits >> np.int32(16)) | np.int32(0x40))
    odd = (bits >> np.int32(16)) & np.int32(1)
    return np.int16((bits + np.int32(0x7FFF) + odd) >> np.int32(16))


def _short_of_exp2(real: Any) -> Any:
    """By how much the hardware's 2^x in float32 asks for a larger x, on average (see decay_of in csrc/common.cuh)."""
    return real(2.9e-8 if real is np.float32 else 0)


def _real_exp(real: Any) -> Any:
    log2_e, short = real(math.log2(math.e)), _short_of_exp2(real)

    def exp(x):
        return real(math.exp2(x * log2_e + short))

    return device_function(exp)


def _complex_exp(real: Any) -> Any:
    log2_e, short = real(math.log2(math.e)), _short_of_exp2(real)

    def exp(x):
        size = math.exp2(x.real * log2_e + short)
        return complex(real(size * math.cos(x.imag)), real(size * math.sin(x.imag)))

    return device_function(exp)


def _complex_size() -> Any:
    def size(x):
        return abs(x.real) + abs(x.imag)

    return device_function(size)


def _phi(real: Any, size: Any) -> tuple[Any, Any]:
    """φ(x) = (exp(x) - 1) / x and its slope; below |x| = 1/2 by series, because both cancel there."""
    one, half, terms = real(1), real(0.5), 10 if real is np.float32 else 16

    def tail(x):
        """(φ(x) - 1) / x = 1/2! + x/3! + x²/4! + …"""
        series = x * real(0) + one
        for k in range(terms, 2, -1):
            series = one + x * series / real(k)
        return series * half

    tail = device_function(tail)

    def phi(x, exp_x):
        if size(x) < half:
            return one + x * tail(x)
        return (exp_x - one) / x

    def slope(x, exp_x, phi_x):
        if size(x) < half:
            return phi_x - tail(x)
        return (exp_x - phi_x) / x

    return device_function(phi), device_function(slope)


def _gates(real: Any) -> tuple[Any, Any]:
    one, linear = real(1), real(20)

    def softplus(x):
        """As torch's: x itself above 20."""
        if x > linear:
            return x
        return real(math.log1p(math.exp(x)))

    def sigmoid(x):
        """Without an exponential that overflows."""
        e = real(math.exp(-abs(x)))
        if x < real(0):
            return e / (one + e)
        return one / (one + e)

    return device_function(softplus), device_function(sigmoid)
