"""The convolution of the CPU backend: prepares tensors for the Numba kernels and runs these on threads."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_conv_kernels
from .cpu_arrays import array, ordered_sum, spans_of, width
from .cpu_compile import ready
from .cpu_memory import fresh
from .cpu_threads import share_out
from .reference import accumulation_dtype

SLAB = 512  # channels of a row that are taken together: all that a step needs of them stays in the first cache
RANGES = 32  # ranges of steps at the most, each with a partial sum of its own
GRAIN = 2**17  # numbers worth a range of steps
SHARE = 2**19  # numbers worth another thread, whose waking takes as long as some hundred thousand

_INPUTS = "i i i i R2 I2 R3 R2 R1 R3 b"
_FORWARD, _BACKWARD = f"{_INPUTS} R3 R3", f"{_INPUTS} R3 R3 R3 R3 Q3"


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.conv_forward`, in the memory of its results."""
    work, spans = accumulation_dtype(x.dtype), spans_of(x, cu_seqlens)
    inputs = _inputs(work, x, weight, bias, initial_state)
    y, final = _results(work, x, weight, len(spans))
    _run(cpu_conv_kernels.conv_forward, _FORWARD, work, spans, *inputs, activation == "silu", y.numpy(), final.numpy())
    return _own(y, x), _own(final, x)


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
    """As `reference.conv_backward`: the values before the activation are computed again."""
    work, spans = accumulation_dtype(x.dtype), spans_of(x, cu_seqlens)
    inputs = *_inputs(work, x, weight, bias, initial_state), activation == "silu"
    grads = _array(dy, work, 3), _array(dfinal_state, work, 3)
    dx, dinitial = _results(work, x, weight, len(spans))
    sums = torch.zeros(_ranges(dx.shape), weight.shape[1] + 1, dx.shape[2], dtype=torch.float64)
    outputs = (tensor.numpy() for tensor in (dx, dinitial, sums))
    _run(cpu_conv_kernels.conv_backward, _BACKWARD, work, spans, *inputs, *grads, *outputs)
    total = ordered_sum(sums)[:, : x.shape[2]]
    dweight = total[:-1].t().to(weight.dtype, copy=True, memory_format=torch.contiguous_format)
    dbias = None if bias is None else total[-1].to(bias.dtype, copy=True)
    return _own(dx, x), dweight, dbias, None if initial_state is None else _own(dinitial, initial_state)


def _inputs(
    work: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None
) -> tuple[np.ndarray, ...]:
    """x, the taps (k d), the bias and the state, which is of no sequence where there is none."""
    inputs = _array(x, work, 3)
    bias = x.new_zeros(x.shape[2]) if bias is None else bias
    initial = inputs[:0] if initial_state is None else _array(initial_state, work, 3)
    return inputs, _array(weight.t(), work, 2), _array(bias, work, 1), initial


def _array(tensor: Tensor, work: torch.dtype, rank: int) -> np.ndarray:
    """As `array`, with as many channels as lanes at least."""
    missing = width(work) - tensor.shape[-1]
    return array(F.pad(tensor, (0, missing)) if missing > 0 else tensor, work, rank)


def _results(work: torch.dtype, x: Tensor, weight: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    """Memory for y and the final state, or for the gradients of x and the initial state; the states begin as zeros."""
    b, length, d = x.shape
    d = max(d, width(work))
    return fresh(b, length, d, dtype=work), torch.zeros(sequences, weight.shape[1] - 1, d, dtype=work)


def _own(result: Tensor, like: Tensor) -> Tensor:
    """The channels of `result` that `like` has, in its dtype."""
    result = result if result.shape[2] == like.shape[2] else result[..., : like.shape[2]].contiguous()
    return result if result.dtype == like.dtype else result.to(like.dtype)


def _ranges(shape: tuple[int, ...]) -> int:
    """How many ranges the steps of all sequences are dealt out as."""
    b, length, d = shape
    return max(1, min(b * length * min(d, SLAB) // GRAIN, b * length, RANGES))


def _run(
    kernel: Any, codes: str, work: torch.dtype, spans: np.ndarray, x: np.ndarray, taps: np.ndarray, *rest: Any
) -> None:
    """Have threads share out the units of a kernel's work, SHARE numbers a share at least."""
    ready(kernel, codes, work)
    ranges, slabs = _ranges(x.shape), -(-x.shape[2] // SLAB)

    def work_on(first: int, last: int) -> None:
        scratch = torch.empty(cpu_conv_kernels.CHUNK + 4 * len(taps), x.shape[2], dtype=work).numpy()
        kernel(first, last, ranges, slabs, scratch, spans, x, taps, *rest)

    share_out(work_on, ranges * slabs, max(1, min(x.size // SHARE, 4 * torch.get_num_threads())))
