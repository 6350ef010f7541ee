"""The public selective scan: checks, custom op, fake kernel, autograd."""

from typing import Any

import torch
from jaxtyping import Float, Inexact, Int32
from torch import Tensor

from . import kept
from .backends import keeps, pick
from .checks import check_bounds, check_options, check_scan


def selective_scan(
    u: Float[Tensor, "b l d"],
    delta: Float[Tensor, "b l d"],
    A: Inexact[Tensor, "d n"],
    B: Inexact[Tensor, "b l n"] | Inexact[Tensor, "d n"],
    C: Inexact[Tensor, "b l n"] | Inexact[Tensor, "d n"],
    D: Float[Tensor, "d"] | None = None,
    z: Float[Tensor, "b l d"] | None = None,
    delta_bias: Float[Tensor, "d"] | None = None,
    *,
    delta_softplus: bool = False,
    discretisation: str = "euler",
    initial_state: Inexact[Tensor, "rows d n"] | None = None,
    cu_seqlens: Int32[Tensor, "bounds"] | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Float[Tensor, "b l d"] | tuple[Float[Tensor, "b l d"], Inexact[Tensor, "rows d n"]]:
    """The selective state space model, gated: y, or (y, final_state) (Mamba, sec. 3 and alg. 2).

        Δ = softplus(delta + delta_bias)                         softplus only when asked for
        h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t                   "euler", as the released models compute it
        h_t = exp(Δ_t A) h_{t-1} + Δ_t φ(Δ_t A) B_t u_t          "zoh", φ(x) = expm1(x) / x (eq. 4)
        y_t = (C_t·h_t + D u_t) silu(z_t)                        2 Re(C_t·h_t) when A is complex

    B and C are selective (b l n) or static (d n); a static Δ is one that is expanded. Any strides will do.
    u, delta, z and selective B, C share float64, float32, bfloat16 or float16, which is y's dtype. A, D, delta_bias,
    static B, C and the states are float32, or float64 when u is; beside a complex A (complex64, or complex128 when u
    is float64) the states are complex, and B and C may be.
    `cu_seqlens` packs sequences, laid end to end with b = 1; states then have one row a sequence, (s d n). Its values
    run from 0 to l and never decrease: that is checked on the CPU, and elsewhere with MAMBALAB_DEBUG=1.
    Without an initial state the scan starts from zeros. All inputs but cu_seqlens have gradients, states included. The
    CUDA backend keeps a state every 16 steps for them, and one more of each packed sequence: at n = 16 and without
    packing what u takes in float32.

    Raises ValueError where a shape, dtype, device or name breaks these rules, or no backend can run.
    """
    check_options(backend, delta_softplus)
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, discretisation)
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    keep = differentiable and keeps(u.device, backend, A.is_complex())
    y, final_state, _ = _scan(*tensors, cu_seqlens, delta_softplus, discretisation, backend or "", keep)
    return (y, final_state) if return_final_state else y


@torch.library.custom_op("mambalab::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check_bounds(cu_seqlens, u.shape[1])
    row = pick(u.device, backend or None, A.is_complex())
    given = u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, discretisation
    if keep and row.scan_keeping is not None:
        return row.scan_keeping(*given)
    # A backend that turned out to be refused may have a successor that keeps nothing.
    states = A.new_zeros(kept.shape(u, A, cu_seqlens)) if keep else _nothing_kept(A)
    return *row.scan_forward(*given), states


@torch.library.custom_op("mambalab::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dfinal_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    discretisation: str,
    backend: str,
    states: Tensor | None,
) -> list[Tensor]:
    row = pick(u.device, backend or None, A.is_complex())
    given = u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus, discretisation
    more = () if states is None or row.scan_keeping is None else (states,)
    grads = row.scan_backward(dy, dfinal_state, *given, *more)
    return [grad for grad in grads if grad is not None]


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, cu_seqlens, _, _, _, keep = rest
    rows = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = A.new_empty(kept.shape(u, A, cu_seqlens)) if keep else _nothing_kept(A)
    return u.new_empty(u.shape), A.new_empty(rows, *A.shape), states


@_scan_backward.register_fake
def _(dy: Tensor, dfinal_state: Tensor, *inputs: Any) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs[:9] if tensor is not None]


def _nothing_kept(A: Tensor) -> Tensor:
    return A.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *options, keep = inputs[10:]
    ctx.options = options
    # Else torch would fill a gradient for the kept states with zeros.
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.state_shape = output[1].shape
    ctx.save_for_backward(*inputs[:10], output[2] if keep else None)


def _differentiate(ctx: Any, dy: Tensor | None, dfinal_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    u, A = inputs[0], inputs[2]
    dy = u.new_zeros(u.shape) if dy is None else dy
    dfinal_state = A.new_zeros(ctx.state_shape) if dfinal_state is None else dfinal_state
    grads = iter(_scan_backward(dy, dfinal_state, *inputs, *ctx.options, states))
    return *(None if tensor is None else next(grads) for tensor in inputs[:9]), None, None, None, None, None


_scan.register_autograd(_differentiate, setup_context=_save)
