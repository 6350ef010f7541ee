"""One token of a mixer on the CPU: two kernels, which write the states in place, around torch's two small products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_step_kernels
from .cpu_arrays import array, working_dtype
from .cpu_compile import ready
from .cpu_threads import share_out
from .reference import accumulation_dtype

GRAIN = 2**14  # states worth handing to another thread

_CONV = "i i R2 R2 R1 b R3 R2"
_SCAN = "i i R2 R2 S2 S2 S2 R1 R2 R1 b b b b S3 R2"


def step(
    x: Tensor,
    z: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    conv_state: Tensor,
    scan_state: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    activation: str,
    delta_softplus: bool,
    discretisation: str,
) -> Tensor:
    """As `reference.step`."""
    n, rank = A.shape[1], 0 if dt_proj is None else dt_proj.shape[1]
    u = _conv(x, conv_weight, conv_bias, conv_state, activation == "silu").to(x.dtype)
    low, B_rows, C_rows = F.linear(u, x_proj).split([rank, 0 if B is not None else n, 0 if C is not None else n], -1)
    delta = torch.zeros_like(u) if dt_proj is None else F.linear(low, dt_proj)
    work = working_dtype(A)
    real, y, state = work.to_real(), torch.empty(u.shape, dtype=work.to_real()), _in_place(scan_state, work)
    ready(cpu_step_kernels.scan_step, _SCAN, work)
    arguments = (
        array(u, real, 2),
        array(delta, real, 2),
        array(A, work, 2),
        array(B_rows if B is None else B, work, 2),
        array(C_rows if C is None else C, work, 2),
        array(D, real, 1),
        array(z, real, 2),
        array(delta_bias, real, 1),
        B is not None,
        C is not None,
        delta_softplus,
        discretisation == "zoh",
        state.numpy(),
        y.numpy(),
    )
    shares = max(1, scan_state.numel() // GRAIN)
    share_out(lambda first, last: cpu_step_kernels.scan_step(first, last, *arguments), len(x), shares)
    _keep(scan_state, state)
    return y.to(x.dtype)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, conv_state: Tensor, silu: bool) -> Tensor:
    """The convolution's next output (b d) in its accumulation dtype; moves `conv_state` on."""
    work = accumulation_dtype(x.dtype)
    u, state = torch.empty(x.shape, dtype=work), _in_place(conv_state, work)
    taps, offset = array(weight.t(), work, 2), array(x.new_zeros(x.shape[1]) if bias is None else bias, work, 1)
    ready(cpu_step_kernels.conv_step, _CONV, work)
    cpu_step_kernels.conv_step(0, len(x), array(x, work, 2), taps, offset, silu, state.numpy(), u.numpy())
    _keep(conv_state, state)
    return u


def _in_place(state: Tensor, dtype: torch.dtype) -> Tensor:
    """The state itself where a kernel can write it, else a copy."""
    state = state.detach()
    plain = state.dtype == dtype and state.stride(-1) == 1 and not state.is_conj() and not state.is_neg()
    return state if plain else state.resolve_conj().resolve_neg().to(dtype, copy=True).contiguous()


def _keep(state: Tensor, written: Tensor) -> None:
    if written.data_ptr() != state.data_ptr() or written.dtype != state.dtype:
        state.detach().copy_(written)
