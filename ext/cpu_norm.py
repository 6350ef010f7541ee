"""The root-mean-square norm of the CPU backend: prepares tensors for the Numba kernels and runs these on threads."""

import torch
from torch import Tensor

from . import cpu_norm_kernels
from .cpu_arrays import array, ordered_sum
from .cpu_compile import ready
from .cpu_memory import fresh
from .cpu_threads import share_out
from .reference import accumulation_dtype

PARTS = 32  # partial sums of the gradient of the weight, at most
GRAIN = 2**14  # numbers of a partial sum, at least
SHARE = 2**19  # numbers worth another thread, as for the convolution

_FORWARD = "i i R2 R1 f R2"
_BACKWARD = "i i i R2 R1 f R2 R2 Q2"


def norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `reference.norm_forward`."""
    work = accumulation_dtype(x.dtype)
    y = fresh(*x.shape, dtype=work)
    arguments = array(x, work, 2), array(weight, work, 1), epsilon, y.numpy()
    ready(cpu_norm_kernels.norm_forward, _FORWARD, work)
    share_out(lambda i, j: cpu_norm_kernels.norm_forward(i, j, *arguments), len(x), max(1, x.numel() // SHARE))
    return y.to(weight.dtype)


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `reference.norm_backward`."""
    work = accumulation_dtype(x.dtype)
    parts = max(1, min(PARTS, x.numel() // GRAIN, len(x)))
    dx, dweight = fresh(*x.shape, dtype=work), torch.zeros(parts, x.shape[1], dtype=torch.float64)
    arguments = array(x, work, 2), array(weight, work, 1), epsilon, array(dy, work, 2), dx.numpy(), dweight.numpy()
    ready(cpu_norm_kernels.norm_backward, _BACKWARD, work)
    share_out(lambda i, j: cpu_norm_kernels.norm_backward(i, j, parts, *arguments), parts, max(1, x.numel() // SHARE))
    return dx.to(x.dtype), ordered_sum(dweight).to(weight.dtype, copy=True)
