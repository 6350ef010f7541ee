"""The public causal convolution: checks, custom op, fake kernel, autograd."""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from .backends import pick
from .checks import check_bounds, check_conv, check_options


def causal_conv1d(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "d k"],
    bias: Float[Tensor, "d"] | None = None,
    *,
    activation: str | None = None,
    initial_state: Float[Tensor, "rows past d"] | None = None,
    cu_seqlens: Int32[Tensor, "bounds"] | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b l d"] | tuple[Float[Tensor, "b l d"], Float[Tensor, "rows past d"]]:
    """Each channel's own filter over the last k inputs, then the activation: y, or (y, final_state).

        y_t = act(bias + Σ_j weight[:, j] x_{t-k+1+j})           act is SiLU ("silu") or nothing (None)

    The state (b k-1 d) is the last k-1 inputs, in x's dtype; a chunk shorter than that shifts it, and k = 1 leaves it
    empty. Without one the x before the first are zeros. weight and bias are in x's dtype, or both float32 (float64 for
    float64). `cu_seqlens`, strides and gradients are as for `selective_scan`, with states (s k-1 d) when packed.

    Raises ValueError where a shape, dtype, device or name breaks these rules, or no backend can run.
    """
    act = "" if activation is None else activation
    check_options(backend)
    check_conv(x, weight, bias, act, initial_state, cu_seqlens)
    y, final_state = _conv(x, weight, bias, initial_state, cu_seqlens, act, backend or "")
    return (y, final_state) if return_final_state else y


@torch.library.custom_op("mambalab::causal_conv1d", mutates_args=())
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_bounds(cu_seqlens, x.shape[1])
    row = pick(x.device, backend or None)
    return row.conv_forward(x, weight, bias, initial_state, cu_seqlens, activation)


@torch.library.custom_op("mambalab::causal_conv1d_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
    backend: str,
) -> list[Tensor]:
    row = pick(x.device, backend or None)
    grads = row.conv_backward(dy, dfinal_state, x, weight, bias, initial_state, cu_seqlens, activation)
    return [grad for grad in grads if grad is not None]


@_conv.register_fake
def _(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    cu_seqlens = rest[2]
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty(rows, weight.shape[1] - 1, x.shape[2])


@_conv_backward.register_fake
def _(dy: Tensor, dfinal_state: Tensor, *inputs: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs[:4] if tensor is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _differentiate(ctx: Any, dy: Tensor, dfinal_state: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grads = iter(_conv_backward(dy, dfinal_state, *inputs, *ctx.options))
    return *(None if tensor is None else next(grads) for tensor in inputs[:4]), None, None, None


_conv.register_autograd(_differentiate, setup_context=_save)
