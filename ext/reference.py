"""The definitions of the ops, one step at a time in plain torch: what every other backend is judged by."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype in which parameters and states live and sums are taken: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def phi(x: Tensor) -> Tensor:
    """φ(x) = expm1(x) / x with φ(0) = 1, the factor by which ZOH differs from Euler (Mamba, eq. 4).

    Below |x| = 2^-6 it is its own series, because both the quotient and its derivative cancel there.
    """
    small = x.abs() < 2**-6
    near, far = torch.where(small, x, 0), torch.where(small, 1, x)
    series = torch.ones_like(x)
    for k in range(9, 1, -1):
        series = 1 + near / k * series
    return torch.where(small, series, torch.expm1(far) / far)


def time_step(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Δ itself, in the accumulation dtype, from what the projection gave."""
    step = delta.to(accumulation_dtype(delta.dtype))
    if delta_bias is not None:
        step = step + delta_bias
    return F.softplus(step) if delta_softplus else step


def discretise(step: Tensor, A: Tensor, discretisation: str) -> tuple[Tensor, Tensor]:
    """Ā = exp(ΔA) and the factor of B in B̄: Δ ("euler") or Δ φ(ΔA) ("zoh"). step (b d), A (d n)."""
    step = step[..., None]
    exponent = step * A
    return torch.exp(exponent), step if discretisation == "euler" else step * phi(exponent)


def scan_forward(
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
) -> tuple[Tensor, Tensor]:
    """h_t = Ā_t h_{t-1} + B̄_t u_t,  y_t = (C_t·h_t + D u_t) silu(z_t) (Mamba, sec. 3); complex A: 2 Re(C_t·h_t)."""
    batch, length = u.shape[:2]
    real = accumulation_dtype(u.dtype)
    lengths = _lengths(cu_seqlens, length)
    wide = u.to(real)
    if initial_state is None:
        initial_state = A.new_zeros(batch if cu_seqlens is None else len(lengths), *A.shape)
    steps = zip(
        wide[..., None].unbind(1),
        time_step(delta, delta_bias, delta_softplus).unbind(1),
        _each_step(B, length, real),
        _each_step(C, length, real),
        strict=True,
    )
    outputs, states = [], []
    for count, h in zip(lengths, _rows(initial_state, cu_seqlens), strict=True):
        for u_t, delta_t, B_t, C_t in islice(steps, count):
            decay, gain = discretise(delta_t, A, discretisation)
            h = decay * h + gain * B_t * u_t
            outputs.append((C_t * h).sum(-1))
        states.append(h)
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(wide)
    y = 2 * y.real if y.is_complex() else y
    if D is not None:
        y = y + D * wide
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(u.dtype).contiguous(), torch.cat([initial_state[:0], *states])


def scan_backward(
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
) -> tuple[Tensor | None, ...]:
    """The gradients of `scan_forward`, in the order of its tensors; None where the input is None."""
    forward = partial(scan_forward, cu_seqlens=cu_seqlens, delta_softplus=delta_softplus, discretisation=discretisation)
    return _gradients(forward, (dy, dfinal_state), (u, delta, A, B, C, D, z, delta_bias, initial_state))


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """y_t = act(bias + Σ_j weight[:, j] x_{t-k+1+j}), with the x before the first in the state; act is "" or "silu"."""
    batch, length, channels = x.shape
    k = weight.shape[1]
    real = accumulation_dtype(x.dtype)
    lengths = _lengths(cu_seqlens, length)
    if initial_state is None:
        initial_state = x.new_zeros(batch if cu_seqlens is None else len(lengths), k - 1, channels)
    taps = weight.to(real).unbind(1)
    outputs, states = [], []
    for piece, past in zip(x.split(lengths, 1) if lengths else (), _rows(initial_state, cu_seqlens), strict=True):
        whole = torch.cat([past, piece], 1)
        outputs.append(_weighted_sum(whole.to(real), taps))
        states.append(whole[:, piece.shape[1] :])
    y = torch.cat([x[:, :0].to(real), *outputs], 1)
    if bias is not None:
        y = y + bias
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype).contiguous(), torch.cat([initial_state[:0], *states])


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
    """The gradients of `conv_forward` for x, weight, bias, initial_state; None where the input is None."""
    forward = partial(conv_forward, cu_seqlens=cu_seqlens, activation=activation)
    return _gradients(forward, (dy, dfinal_state), (x, weight, bias, initial_state))


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
    """One token of a mixer between in_proj and out_proj, as the two forwards at l = 1; writes both states."""
    n, rank = A.shape[1], 0 if dt_proj is None else dt_proj.shape[1]
    mixed, conv_next = conv_forward(x[:, None], conv_weight, conv_bias, conv_state, None, activation)
    low, B_rows, C_rows = F.linear(mixed, x_proj).split(
        [rank, 0 if B is not None else n, 0 if C is not None else n], -1
    )
    delta = torch.zeros_like(mixed) if dt_proj is None else F.linear(low, dt_proj)
    B, C = B_rows if B is None else B, C_rows if C is None else C
    z = None if z is None else z[:, None]
    y, scan_next = scan_forward(
        mixed, delta, A, B, C, D, z, delta_bias, scan_state, None, delta_softplus, discretisation
    )
    conv_state.copy_(conv_next)
    scan_state.copy_(scan_next)
    return y[:, 0]


def norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x (p m) over its root mean square, times weight (m), in weight's dtype (Zhang & Sennrich, arXiv:1910.07467)."""
    wide = accumulation_dtype(x.dtype)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), epsilon).to(weight.dtype)


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor | None, ...]:
    """The gradients of `norm_forward` for x and weight."""
    return _gradients(lambda x, weight: (norm_forward(x, weight, epsilon),), (dy,), (x, weight))


def _lengths(cu_seqlens: Tensor | None, length: int) -> list[int]:
    if cu_seqlens is None:
        return [length]
    return [end - begin for begin, end in pairwise(cu_seqlens.tolist())]


def _rows(state: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    """The state each sequence starts from: the whole batch at once, or one row a packed sequence."""
    return (state,) if cu_seqlens is None else state[:, None].unbind(0)


def _each_step(matrix: Tensor, length: int, real: torch.dtype) -> list[Tensor]:
    """B or C at every step: (b 1 n) each when selective, one (d n) throughout when static."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, real))
    return [matrix] * length if matrix.dim() == 2 else list(matrix[:, :, None].unbind(1))


def _weighted_sum(x: Tensor, taps: tuple[Tensor, ...]) -> Tensor:
    length = x.shape[1] - len(taps) + 1
    total = x[:, :length] * taps[0]
    for j, tap in enumerate(taps[1:], 1):
        total = total + x[:, j : j + length] * tap
    return total


def _gradients(
    forward: Callable[..., tuple[Tensor, ...]], grads: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    with _recording():
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        pairs = [(out, grad) for out, grad in zip(forward(*leaves), grads, strict=True) if out.requires_grad]
        outputs, seeds = zip(*pairs, strict=True) if pairs else ((), ())
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(outputs, given, seeds, materialize_grads=True))
    return tuple(None if x is None else _fresh(next(found)) for x in inputs)


@contextmanager
def _recording() -> Iterator[None]:
    """Let autograd record inside a custom op, where enable_grad alone records nothing.

    The dispatcher skips autograd there, and in a compiled graph also what makes a lazily conjugated tensor read right.
    """
    key = torch._C.DispatchKey
    with ExitStack() as stack:
        for skipped in (key.AutogradFunctionality, key.Conjugate, key.Negative):
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(skipped, False))
        stack.enter_context(torch.enable_grad())
        yield


def _fresh(grad: Tensor) -> Tensor:
    """A contiguous copy, for a gradient may be a view of what was handed in, or lazily conjugated."""
    return grad.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
