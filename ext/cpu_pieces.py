"""One long sequence of few channels, which would keep one thread busy, scanned as pieces that threads take at once.

The pieces are first run as packed sequences from zero states. What a piece then makes of the state before it is known
without another run: exp(A ΣΔ) times it, more. So the pieces' states follow one from the other, and a second run, from
these, is the scan; its gradients likewise, from the last piece to the first. Twice the arithmetic, on PIECES threads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 16  # at most: there is nothing else to share out
PIECES = 16
SHORTEST = 1024  # steps of a piece
ROWS = 1024  # steps that are summed at once


class Pieces(NamedTuple):
    """Where they begin and end, as cu_seqlens, and how much each leaves of the state before it, exp(A ΣΔ)."""

    ends: Tensor  # (PIECES + 1)
    fades: Tensor  # (PIECES d n)


Scan = Callable[..., tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor | None, ...]]


def cut(
    u: Tensor, delta: Tensor, A: Tensor, delta_bias: Tensor | None, cu_seqlens: Tensor | None, softplus: bool
) -> Pieces | None:
    """The pieces of a sequence; None for one that is not to be cut, and where a state would overflow.

    That a state which grows beyond all bounds may still be multiplied by zero is known to the sequential scan alone.
    """
    b, length, d = u.shape
    if cu_seqlens is not None or b != 1 or d > CHANNELS or length < PIECES * SHORTEST:
        return None
    ends = torch.arange(PIECES + 1).mul(length).div(PIECES, rounding_mode="floor")
    fades = torch.exp(A * _elapsed(delta[0], delta_bias, softplus, ends).to(A.dtype.to_real())[..., None])
    return Pieces(ends, fades) if fades.isfinite().all() else None


def forward(
    scan: Scan, pieces: Pieces, inputs: tuple[Tensor | None, ...], state: Tensor | None, *options: object
) -> tuple[Tensor, Tensor]:
    """y and the last state, by `scan`, which has the signature of a backend's scan_forward."""
    before = _relay(scan, pieces, inputs, state, *options)
    y, after = scan(*inputs, before, pieces.ends, *options)
    return y, after[-1:]


def backward(
    scan: Scan,
    differentiate: Backward,
    pieces: Pieces,
    dy: Tensor,
    dfinal_state: Tensor,
    inputs: tuple[Tensor | None, ...],
    state: Tensor | None,
    *options: object,
) -> tuple[Tensor | None, ...]:
    """The gradients of `forward`, by `differentiate`, which has the signature of a backend's scan_backward."""
    before = _relay(scan, pieces, inputs, state, *options)
    *_, own = differentiate(dy, torch.zeros_like(before), *inputs, before, pieces.ends, *options)
    assert own is not None
    dstates = [dfinal_state[0]]
    for fade, piece in zip(pieces.fades[1:].flip(0), own[1:].flip(0), strict=True):
        dstates.insert(0, piece + fade.conj() * dstates[0])
    *grads, dinitial = differentiate(dy, torch.stack(dstates), *inputs, before, pieces.ends, *options)
    return *grads, None if state is None or dinitial is None else dinitial[:1]


def _relay(
    scan: Scan, pieces: Pieces, inputs: tuple[Tensor | None, ...], state: Tensor | None, *options: object
) -> Tensor:
    """The states before the pieces (PIECES d n)."""
    A = inputs[2]
    assert A is not None
    first = A.new_zeros(1, *A.shape) if state is None else state
    nothing = torch.zeros_like(first).expand(PIECES, -1, -1)
    _, after = scan(*inputs, nothing, pieces.ends, *options)
    states = [first[0]]
    for fade, piece in zip(pieces.fades[:-1], after[:-1], strict=True):
        states.append(fade * states[-1] + piece)
    return torch.stack(states)


def _elapsed(delta: Tensor, bias: Tensor | None, softplus: bool, ends: Tensor) -> Tensor:
    """ΣΔ of each piece (PIECES d), summed in double precision in an order that no number of threads changes."""
    sums = delta.new_zeros(PIECES, delta.shape[1], dtype=torch.float64)
    for i, piece in enumerate(delta.tensor_split(ends[1:-1])):
        for rows in piece.split(ROWS):
            steps = rows.double() if bias is None else rows.double() + bias
            sums[i] += (F.softplus(steps) if softplus else steps).sum(0)
    return sums
