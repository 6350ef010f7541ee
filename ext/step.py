"""The public step: one token of a whole Mamba mixer, both of its states advanced in place."""

from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from .backends import pick
from .checks import check_options, check_step


def step_(
    x: Float[Tensor, "b d"],
    z: Float[Tensor, "b d"] | None,
    conv_weight: Float[Tensor, "d k"],
    conv_bias: Float[Tensor, "d"] | None,
    x_proj: Float[Tensor, "p d"],
    dt_proj: Float[Tensor, "d r"] | None,
    A: Inexact[Tensor, "d n"],
    D: Float[Tensor, "d"] | None,
    delta_bias: Float[Tensor, "d"] | None,
    conv_state: Float[Tensor, "b past d"],
    scan_state: Inexact[Tensor, "b d n"],
    *,
    B: Inexact[Tensor, "d n"] | None = None,
    C: Inexact[Tensor, "d n"] | None = None,
    activation: str | None = "silu",
    delta_softplus: bool = True,
    discretisation: str = "euler",
    backend: str | None = None,
) -> Float[Tensor, "b d"]:
    """One token between in_proj and out_proj: y (b d) in x's dtype; writes conv_state and scan_state.

        x = causal_conv1d(x)      (Δ, B, C) = x_proj x      y = selective_scan(x, dt_proj Δ, A, B, C, D, z, delta_bias)

    The rows of x_proj (p d) are [Δ r | B n | C n]. A static B or C (d n) is given instead of its rows; a static Δ is
    dt_proj = None, which makes r = 0 and leaves Δ to delta_bias alone. Dtypes are those of `causal_conv1d` and
    `selective_scan`; x_proj and dt_proj are in x's dtype. z = None is no gate. The states, which are written in place,
    may have any strides that give each element its own place; they share no memory with each other or the rest.

    Raises ValueError where a shape, dtype, device or name breaks these rules, no backend can run, or x or a state asks
    for a gradient, which a step has not.
    """
    act = "" if activation is None else activation
    check_options(backend, delta_softplus)
    check_step(
        x, z, conv_weight, conv_bias, x_proj, dt_proj, A, D, delta_bias, conv_state, scan_state, B, C, act,
        discretisation,
    )  # fmt: skip
    if torch.is_grad_enabled() and (x.requires_grad or conv_state.requires_grad or scan_state.requires_grad):
        raise ValueError("step_ has no gradient; call it under torch.no_grad()")
    return torch.ops.mambalab.step_.default(
        x, z, conv_weight, conv_bias, x_proj, dt_proj, A, D, delta_bias, conv_state, scan_state, B, C, act,
        delta_softplus, discretisation, backend or "",
    )  # fmt: skip


# Not custom_op, which at this number of arguments spends 100 µs a call on its schema as soon as anything is mutated.
torch.library.define(
    "mambalab::step_",
    "(Tensor x, Tensor? z, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor? dt_proj, Tensor A, Tensor? D, "
    "Tensor? delta_bias, Tensor(a!) conv_state, Tensor(b!) scan_state, Tensor? B, Tensor? C, str activation, "
    "bool delta_softplus, str discretisation, str backend) -> Tensor",
)


@torch.library.impl("mambalab::step_", "default")
def _step(x: Tensor, *arguments: Any) -> Tensor:
    *rest, backend = arguments
    A = rest[5]
    row = pick(x.device, backend or None, A.is_complex())
    if not torch.is_autocast_enabled(x.device.type):
        return row.step(x, *rest)
    # The projections inside are in x's dtype by contract, whatever autocast is on around them.
    with torch.autocast(x.device.type, enabled=False):
        return row.step(x, *rest)


@torch.library.register_fake("mambalab::step_")
def _(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape)
