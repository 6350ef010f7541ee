"""Causal convolution with a filter as long as the sequence, by FFT: how S4 and Hyena read a whole sequence at once."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layers import widened


def causal_convolution(u: Float[Tensor, "b l d"], kernel: Float[Tensor, "d l"]) -> Float[Tensor, "b l d"]:
    """y_t = Σ_k kernel[:, k] u_{t-k} for each channel, in u's dtype; computed in float32 (float64 for float64)."""
    return _Convolution.apply(u, kernel)  # pyright: ignore[reportReturnType]


def through(kernel: Float[Tensor, "d l"], D: Float[Tensor, " d"]) -> Float[Tensor, "d l"]:
    """The filter that adds D u to what the kernel makes of u."""
    return torch.cat([kernel[:, :1] + D[:, None], kernel[:, 1:]], 1)


class _Convolution(torch.autograd.Function):
    """The gradients are correlations, of spectra that are kept.

    Of an even number of rows, two are the parts of one complex sequence: what a real filter does to it, it does to each
    part, and a complex FFT is spared the passes that make a real one of it.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.n = u.shape, u.dtype, fft_length(2 * u.shape[1])
        ctx.is_paired = len(u) % 2 == 0
        sequences = _spectra(u, ctx)
        filters = (torch.fft.fft if ctx.is_paired else torch.fft.rfft)(kernel, ctx.n)
        ctx.save_for_backward(sequences, filters)
        return _rows(sequences * (filters / ctx.n), ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        sequences, filters = ctx.saved_tensors
        needs_u, needs_kernel = ctx.needs_input_grad
        dy = _spectra(dy, ctx)
        dkernel = _kernel((dy * sequences.conj()).sum(0), ctx) if needs_kernel else None
        return _rows(dy.mul_(filters.conj() / ctx.n), ctx) if needs_u else None, dkernel


def _spectra(x: Float[Tensor, "b l d"], ctx: Any) -> Complex[Tensor, "p d f"]:
    """Of each channel, with zeros to length n: along the axis whose numbers lie side by side an FFT is fastest."""
    x = x.to(widened(x.dtype))
    if not ctx.is_paired:
        return torch.fft.rfft(x.mT, ctx.n)
    parts = x.unflatten(0, (-1, 2)).permute(0, 3, 2, 1)
    return torch.fft.fft(torch.view_as_complex(F.pad(parts, (0, 0, 0, ctx.n - x.shape[1]))))


def _rows(spectra: Complex[Tensor, "p d f"], ctx: Any) -> Float[Tensor, "b l d"]:
    """The rows with these spectra, which are divided by n already."""
    length = ctx.shape[1]
    rows = torch.empty(ctx.shape, dtype=ctx.dtype, device=spectra.device)
    if not ctx.is_paired:
        return rows.copy_(torch.fft.irfft(spectra, ctx.n, norm="forward")[..., :length].mT)
    parts = torch.view_as_real(torch.fft.ifft(spectra, norm="forward"))[:, :, :length]
    rows.unflatten(0, (-1, 2)).copy_(parts.permute(0, 3, 2, 1))
    return rows


def _kernel(spectra: Complex[Tensor, "d f"], ctx: Any) -> Float[Tensor, "d l"]:
    """The real sequences with these spectra; what one row of a pair has to do with the other is imaginary."""
    sequences = torch.fft.ifft(spectra).real if ctx.is_paired else torch.fft.irfft(spectra, ctx.n)
    return sequences[:, : ctx.shape[1]]


@cache
def fft_length(least: int) -> int:
    """The smallest number from `least` on with no prime factor above 7, for which an FFT is fast.

    >>> fft_length(8256)
    8400
    """
    powers = [[prime**k for k in range(least.bit_length() + 1)] for prime in (3, 5, 7)]
    odd = (math.prod(factors) for factors in product(*powers))
    return min(factor << max(0, (-(-least // factor) - 1).bit_length()) for factor in odd)
