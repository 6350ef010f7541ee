"""S4 with a diagonal state matrix (S4D; Gu et al. 2022, arXiv:2206.11893): a convolution, and a recurrence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Inexact
from torch import Generator, Tensor, nn

from ..ext.reference import phi
from .architectures import SequenceConfig
from .layers import DiagonalState, widened
from .long_conv import causal_convolution, through

BLOCK = 64


class S4(DiagonalState):
    """A linear time-invariant SSM in each of `d` channels, B = 1 throughout as in S4D.

        h_t = Ā h_{t-1} + B̄ u_t        y_t = 2 Re(C·h_t) + D u_t        C·h_t when A is real

    Ā and B̄ from one learnt Δ a channel: ZOH, Ā = exp(ΔA), B̄ = Δ φ(ΔA) with φ(x) = expm1(x) / x; or bilinear,
    Ā = (1 + ΔA/2) / (1 - ΔA/2), B̄ = Δ / (1 - ΔA/2). `d_state` counts real numbers: d_state / 2 conjugate pairs.
    A sequence is a convolution with the kernel (d l) of C Ā^k B̄, one token a turn of the recurrence. Between the two
    stands a table of the powers of Ā, (d l n): a sequence too long for it is read chunk by chunk.
    """

    def __init__(self, config: SequenceConfig, d: int) -> None:
        super().__init__()
        self.config = config
        self.is_complex = config.s4_init != "s4d-real"
        n = config.d_state // 2 if self.is_complex else config.d_state
        self.log_delta = nn.Parameter(torch.empty(d))
        self.A_log = nn.Parameter(torch.empty(d, n))
        self.A_imag = nn.Parameter(torch.empty(d, n)) if self.is_complex else None
        # Real and imaginary parts lie side by side.
        self.C = nn.Parameter(torch.empty(d, config.d_state))
        self.D = nn.Parameter(torch.empty(d))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """A by `s4_init` (S4D, section 4): Lin -1/2 + iπn, Inv -1/2 + i (N/π)(N/(2n+1) - 1), Real -(n+1).

        Δ is log-uniform in [dt_min, dt_max], C standard normal, complex where A is, and D standard normal.
        """
        config, n = self.config, torch.arange(self.A_log.shape[1])
        self.log_delta.uniform_(math.log(config.dt_min), math.log(config.dt_max), generator=generator)
        if self.A_imag is None:
            self.A_log.copy_((n + 1).log())
        else:
            N = config.d_state
            self.A_log.fill_(math.log(0.5))
            self.A_imag.copy_(math.pi * n if config.s4_init == "s4d-lin" else N / math.pi * (N / (2 * n + 1) - 1))
        self.C.normal_(0, 0.5**0.5 if self.is_complex else 1.0, generator=generator)
        self.D.normal_(generator=generator)

    def discretise(self) -> tuple[Inexact[Tensor, "d n"], Inexact[Tensor, "d n"]]:
        """log Ā and B̄. The logarithm is complex for a bilinear Ā, which may be negative."""
        delta, A = torch.exp(self.log_delta)[:, None], self.A
        exponent = delta * A
        if self.config.s4_discretisation == "zoh":
            return exponent, delta * phi(exponent)
        ratio = (1 + exponent / 2) / (1 - exponent / 2)
        if not self.is_complex:
            ratio = torch.complex(ratio, torch.zeros_like(ratio))
        return torch.log(ratio), delta / (1 - exponent / 2)

    def kernel(self, length: int) -> Float[Tensor, "d l"]:
        """The impulse response C Ā^k B̄ for k = 0 … length - 1, without D."""
        log_A, B = self.discretise()
        return self._kernel(self._powers(log_A, length), B)

    def forward(
        self, u: Float[Tensor, "b l d"], state: Inexact[Tensor, "b d n"] | None, backend: str | None
    ) -> tuple[Float[Tensor, "b l d"], Inexact[Tensor, "b d n"]]:
        """The outputs of a chunk from this state (zeros for None), and the state after it. One way on any backend."""
        read = self._turn if u.shape[1] == 1 else self._sequence
        # A kernel is made of powers whose digits all count, so autocast has no say in it.
        with torch.autocast(u.device.type, enabled=False):
            y, state = read(u.to(widened(u.dtype)), state, *self.discretise())
        return y.to(u.dtype), state

    def _turn(self, u: Tensor, state: Tensor | None, log_A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """One token: a turn of the recurrence."""
        written = B * u[:, 0, :, None]
        state = written if state is None else self._real(torch.exp(log_A)) * state + written
        return (_reals(state) * self._readout(self._C)).sum(-1)[:, None] + self.D * u, state

    def _sequence(self, u: Tensor, state: Tensor | None, log_A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk: the convolution, what the state before adds to it, and the state after, from one table of powers."""
        powers = self._powers(log_A, u.shape[1])
        y = causal_convolution(u, through(self._kernel(powers, B), self.D))
        written = (u.permute(2, 0, 1) @ _reals(powers.flip(1))).transpose(0, 1)
        after = B * (_complexes(written) if self.is_complex else written)
        if state is None:
            return y, after
        decay = self._real(torch.exp(log_A))
        past = _reals(powers) @ self._readout(self._C * decay * state).permute(1, 2, 0)
        return y + past.permute(2, 1, 0), after + self._real(torch.exp(u.shape[1] * log_A)) * state

    def _kernel(self, powers: Tensor, B: Tensor) -> Tensor:
        return (_reals(powers) @ self._readout(self._C * B)[..., None])[..., 0]

    @property
    def _C(self) -> Tensor:
        return torch.complex(*self.C.chunk(2, -1)) if self.is_complex else self.C

    def _powers(self, log_A: Tensor, length: int) -> Tensor:
        """Ā^k for k = 0 … length - 1: (d l n), as products of a few exponentials, which cost more."""
        fine = torch.arange(min(length, BLOCK), device=log_A.device)[:, None]
        coarse = torch.arange(0, length, BLOCK, device=log_A.device)[:, None]
        low, high = torch.exp(fine * log_A[:, None]), torch.exp(coarse * log_A[:, None])
        return self._real((high[:, :, None] * low[:, None]).flatten(1, 2)[:, :length])

    def _real(self, power: Tensor) -> Tensor:
        """A power of Ā in A's own field."""
        return power if self.is_complex or not power.is_complex() else power.real

    def _readout(self, weights: Tensor) -> Tensor:
        """The real row w with w·reals(x) = 2 Re(weights·x), or weights·x when A is real."""
        return _reals(2 * weights.conj()) if self.is_complex else weights


def _reals(x: Tensor) -> Tensor:
    """Complex numbers as pairs of reals along the last axis; reals as they are."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def _complexes(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)).contiguous())
