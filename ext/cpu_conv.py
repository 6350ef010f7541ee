"""The causal convolution on the CPU, in torch's own operations.

A sequence is laid out behind the k-1 inputs that came before it (zeros without a state), and packed sequences one after
the other in that form, so that one depthwise convolution serves them all and nothing leaks between them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import accumulation_dtype

ROWS = 1024  # steps that are summed at once into the gradient of the weight


class _Layout(NamedTuple):
    """Where packed sequences stand in the row of histories and inputs; None for a batch, which has one form a row."""

    inputs: Tensor  # (l) of each input
    outputs: Tensor  # (l) of the output that belongs to it
    histories: Tensor  # (s k-1) of the inputs before each sequence
    finals: Tensor  # (s k-1) of each sequence's last inputs
    count: int  # s


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """As `reference.conv_forward`."""
    layout = _layout(cu_seqlens, weight.shape[1] - 1)
    padded = _padded(x, weight.shape[1] - 1, initial_state, layout)
    y = _convolved(padded, weight, bias, layout)
    y = F.silu(y) if activation == "silu" else y
    return y.to(x.dtype).contiguous(), _final_state(padded, weight.shape[1] - 1, layout).contiguous()


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
    history, real = weight.shape[1] - 1, accumulation_dtype(x.dtype)
    layout = _layout(cu_seqlens, history)
    padded = _padded(x, history, initial_state, layout).to(real)
    grad = dy.to(real)
    if activation == "silu":
        before = _convolved(padded, weight, bias, layout)
        gate = torch.sigmoid(before)
        grad = grad * gate * (1 + before * (1 - gate))
    dbias = None if bias is None else _ordered_sum(grad).to(bias.dtype)
    if layout is not None:
        places = grad.new_zeros(1, max(padded.shape[1] - history, 0), grad.shape[2])
        grad = places.index_copy_(1, layout.outputs, grad)
    dweight, dpadded = torch.zeros_like(weight, dtype=real), torch.zeros_like(padded)
    for j, tap in enumerate(weight.to(real).unbind(1)):
        window = slice(j, j + grad.shape[1])
        dweight[:, j] = _ordered_sum(grad * padded[:, window])
        dpadded[:, window] += grad * tap
    dx, dinitial = _split_gradient(dpadded, dfinal_state.to(real), history, layout)
    dinitial = None if initial_state is None else _own(dinitial, initial_state.dtype)
    return _own(dx, x.dtype), dweight.to(weight.dtype), dbias, dinitial


def _own(part: Tensor, dtype: torch.dtype) -> Tensor:
    """A part of a row in memory of its own, as an op has to return it."""
    return part.to(dtype).clone(memory_format=torch.contiguous_format)


def _layout(cu_seqlens: Tensor | None, history: int) -> _Layout | None:
    if cu_seqlens is None:
        return None
    bounds = cu_seqlens.long()
    sequence = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
    outputs = torch.arange(len(sequence)) + history * sequence
    # Sequence i and its history begin at bounds[i] + i * history.
    heads = bounds + history * torch.arange(len(bounds))
    behind = torch.arange(history)
    finals = heads[1:] - history
    return _Layout(
        inputs=outputs + history,
        outputs=outputs,
        histories=(heads[:-1, None] + behind).flatten(),
        finals=(finals[:, None] + behind).flatten(),
        count=len(finals),
    )


def _padded(x: Tensor, history: int, initial_state: Tensor | None, layout: _Layout | None) -> Tensor:
    """Each sequence behind its history: (b k-1+l d), or one row (1 l+s(k-1) d) of packed ones."""
    if layout is None:
        before = x.new_zeros(x.shape[0], history, x.shape[2]) if initial_state is None else initial_state
        return torch.cat([before, x], 1)
    padded = x.new_zeros(1, x.shape[1] + len(layout.histories), x.shape[2])
    padded[:, layout.inputs] = x
    if initial_state is not None:
        padded[:, layout.histories] = initial_state.reshape(1, -1, x.shape[2])
    return padded


def _convolved(padded: Tensor, weight: Tensor, bias: Tensor | None, layout: _Layout | None) -> Tensor:
    """Before the activation, in the accumulation dtype: (b l d)."""
    real = accumulation_dtype(padded.dtype)
    length = padded.shape[1] - weight.shape[1] + 1
    if padded.numel() == 0 or length <= 0:
        return padded.new_empty(
            padded.shape[0], 0 if layout is not None else max(length, 0), padded.shape[2], dtype=real
        )
    rows = padded.to(real).transpose(1, 2).unsqueeze(2)
    offset = None if bias is None else bias.to(real)
    y = F.conv2d(rows, weight.to(real)[:, None, None], offset, groups=weight.shape[0]).squeeze(2).transpose(1, 2)
    return y if layout is None else y[:, layout.outputs]


def _final_state(padded: Tensor, history: int, layout: _Layout | None) -> Tensor:
    """The last k-1 inputs of each sequence, its history included: (b k-1 d) or (s k-1 d)."""
    if layout is None:
        return padded[:, padded.shape[1] - history :].clone()
    return padded[0, layout.finals].reshape(layout.count, history, padded.shape[2])


def _split_gradient(
    dpadded: Tensor, dfinal_state: Tensor, history: int, layout: _Layout | None
) -> tuple[Tensor, Tensor]:
    """The gradients of the inputs and of the histories; the final states' own are added where these were read."""
    if layout is None:
        dpadded[:, dpadded.shape[1] - history :] += dfinal_state
        return dpadded[:, history:], dpadded[:, :history]
    dpadded[0, layout.finals] += dfinal_state.reshape(-1, dpadded.shape[2])
    dinitial = dpadded[0, layout.histories].reshape(dfinal_state.shape)
    return dpadded[:, layout.inputs], dinitial


def _ordered_sum(values: Tensor) -> Tensor:
    """The sum over b and l, ROWS steps at a time: torch shares one such sum out by its shape, not by its threads."""
    total = values.new_zeros(values.shape[2])
    for row in values:
        for part in row.split(ROWS):
            total += part.sum(0)
    return total
