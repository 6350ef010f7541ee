"""The convolution of the numba-cuda backend: prepares tensors for its kernels."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import numba_cuda_conv_kernels as kernels
from . import numba_cuda_plan as plans
from .numba_cuda_arrays import absent, launch, power_of_two_above
from .numba_cuda_conv_kernels import RUN, THREADS, Kind
from .reference import accumulation_dtype


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.conv_forward`."""
    kind = _kind(x, weight, activation)
    rows, inputs = _inputs(x, weight, bias, initial_state, cu_seqlens)
    y, final = x.new_empty(x.shape), x.new_empty(rows, kind.k - 1, x.shape[2])
    launch(partial(kernels.conv_forward, kind), x.device, _blocks(x, kind), kind.channels, *inputs, y)
    if kind.k > 1:
        launch(partial(kernels.conv_state, kind), x.device, rows, kind.channels, *inputs, final)
    return y, final


def conv_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor | None, ...]:
    """As `reference.conv_backward`."""
    kind, real = _kind(x, weight, activation), accumulation_dtype(x.dtype)
    rows, inputs = _inputs(x, weight, bias, initial_state, cu_seqlens)
    (b, length, d), k = x.shape, kind.k
    parts, blocks = b * -(-length // RUN), _blocks(x, kind)
    grads, dtaps, doffset = (x.new_empty(*shape, dtype=real) for shape in (x.shape, (parts, k, d), (parts, d)))
    launch(partial(kernels.conv_grads, kind), x.device, blocks, kind.channels, *inputs, dy, grads, dtaps, doffset)
    dx, dinitial = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows, k - 1, d)
    back = grads, weight, dfinal_state, *inputs[4:]
    launch(partial(kernels.conv_inputs, kind), x.device, blocks, kind.channels, *back, dx)
    if k > 1 and initial_state is not None:
        launch(partial(kernels.conv_initial, kind), x.device, rows, kind.channels, *back, dinitial)
    dweight = dtaps.sum(0, dtype=torch.float64).t().to(weight.dtype).contiguous()
    dbias = None if bias is None else doffset.sum(0, dtype=torch.float64).to(bias.dtype)
    return dx, dweight, dbias, None if initial_state is None else dinitial


def _kind(x: Tensor, weight: Tensor, activation: str) -> Kind:
    channels = min(THREADS, power_of_two_above(x.shape[2]))
    return Kind(x.dtype, weight.dtype, weight.shape[1], channels, activation == "silu")


def _blocks(x: Tensor, kind: Kind) -> int:
    return x.shape[0] * -(-x.shape[1] // RUN) * -(-x.shape[2] // kind.channels)


def _inputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[int, tuple[Any, ...]]:
    """The number of rows, and the first arguments of the kernels as `kernels.codes` has them."""
    flags = (plans.BIAS, bias), (plans.INITIAL, initial_state), (plans.PACKED, cu_seqlens)
    given = sum(flag for flag, tensor in flags if tensor is not None)
    rows = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    bias = absent(1, weight.dtype, x) if bias is None else bias
    initial_state = absent(3, x.dtype, x) if initial_state is None else initial_state
    bounds = absent(1, torch.int32, x) if cu_seqlens is None else cu_seqlens
    return rows, (x, weight, bias, initial_state, bounds, given)
