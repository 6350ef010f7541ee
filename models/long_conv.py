"""Causal convolution with a filter as long as the sequence, by FFT: how S4 and Hyena read a whole sequence at once."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from .layers import widened


def causal_convolution(u: Float[Tensor, "b l d"], kernel: Float[Tensor, "d l"]) -> Float[Tensor, "b l d"]:
    """y_t = Σ_k kernel[:, k] u_{t-k} for each channel, in u's dtype; computed in float32 (float64 for float64)."""
    length = u.shape[1]
    n = fft_length(2 * length)
    spectrum = torch.fft.rfft(u.to(widened(u.dtype)), n, dim=1) * torch.fft.rfft(kernel, n).mT
    return torch.fft.irfft(spectrum, n, dim=1)[:, :length].to(u.dtype)


@cache
def fft_length(least: int) -> int:
    """The smallest number from `least` on with no prime factor above 5, for which an FFT is fast.

    >>> fft_length(8256)
    8640
    """
    fives = (5**k for k in range(least.bit_length() + 1))
    odd = (five * 3**k for five in fives for k in range(least.bit_length() + 1))
    return min(factor << max(0, (-(-least // factor) - 1).bit_length()) for factor in odd)
