"""S6: the selective SSM, whose Δ, B and C are each a function of the input or a parameter (Mamba, algorithm 2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Inexact, Int32
from torch import Generator, Tensor, nn

from ..ext import selective_scan
from .branches import with_product
from .layers import DeltaProjection, DiagonalState, KeepsFloat32, StaticDelta, initialise_by_fan_in, widened
from .registry import SelectiveSettings

# Numbers of 16 bits in the 16 bytes that tensor cores are fed from: columns that begin elsewhere take twice as long.
ALIGNED = 8


class SelectiveSSM(DiagonalState, KeepsFloat32):
    """The parameters of a selective SSM, and what they make of its inputs."""

    float32_names = ("A_log", "A_imag", "D", "B", "C")

    def define(self, config: SelectiveSettings, d: int) -> None:
        """Make the parameters for `d` channels: to be called where they stand in the order of the published files."""
        self.settings = config
        self.discretisation = config.discretisation
        shape = (d, config.reals)
        rows = sum(config.projected)
        self.x_proj = nn.Linear(d, rows, bias=False) if rows else None
        self.dt_proj = DeltaProjection(config.rank, d) if config.selective_delta else StaticDelta(d)
        self.A_log = nn.Parameter(torch.empty(d, config.d_state, dtype=torch.float32))
        self.A_imag = nn.Parameter(torch.empty(d, config.d_state)) if config.is_complex else None
        self.D = nn.Parameter(torch.empty(d, dtype=torch.float32))
        # Real and imaginary parts lie side by side, here and in the rows of x_proj.
        self.B = None if config.selective_B else nn.Parameter(torch.empty(shape))
        self.C = None if config.selective_C else nn.Parameter(torch.empty(shape))

    @torch.no_grad()
    def initialise_ssm(self, generator: Generator) -> None:
        """Draw all but x_proj: A as `A_init` says, D = 1, and a static B = 1 and C ~ N(0, 1), as in S4D."""
        config = self.settings
        self.dt_proj.initialise(config.dt_min, config.dt_max, generator)
        if config.A_init == "random":
            self.A_log.normal_(generator=generator)
        elif config.A_init == "-(n+1)":
            self.A_log.copy_(torch.arange(1, config.d_state + 1).log())
        else:
            self.A_log.fill_(math.log(0.5))
        if self.A_imag is not None:
            self.A_imag.copy_(torch.arange(config.d_state))
        self.D.fill_(1)
        if self.B is not None:
            self.B.fill_(0)[:, : config.d_state] = 1
        if self.C is not None:
            self.C.normal_(0, (config.d_state / config.reals) ** 0.5, generator=generator)

    def select(
        self, u: Float[Tensor, "*b l d"]
    ) -> tuple[Float[Tensor, "*b l d"], Float[Tensor, "*b l d"], Inexact[Tensor, "..."], Inexact[Tensor, "..."]]:
        """u, for the scan alone to read; Δ before its bias and softplus, B and C.

        A static B or C is (d n), a static Δ of stride 0.
        """
        rank, *others = self.settings.projected
        before = -rank % ALIGNED if u.dtype.itemsize == 2 else 0
        if self.x_proj is None:
            rows = u[..., :0]
        else:
            weight = self.x_proj.weight
            u, rows = with_product(u, F.pad(weight, (0, 0, before, 0)) if before else weight)
        low, B, C = rows.split((before + rank, *others), -1)
        return (
            u,
            self.dt_proj(low),
            self._matrix(B if self.B is None else self.B),
            self._matrix(C if self.C is None else self.C),
        )

    def scan(
        self,
        u: Float[Tensor, "b l d"],
        z: Float[Tensor, "b l d"] | None,
        state: Inexact[Tensor, "s d n"] | None,
        cu_seqlens: Int32[Tensor, " s_plus_1"] | None,
        backend: str | None,
    ) -> tuple[Float[Tensor, "b l d"], Inexact[Tensor, "s d n"]]:
        """The outputs of a chunk from this state (zeros for None), gated by z, and the state after it."""
        u, delta, B, C = self.select(u)
        y, state = selective_scan(
            u, delta, self.A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True,
            discretisation=self.discretisation, initial_state=state, cu_seqlens=cu_seqlens,
            return_final_state=True, backend=backend,
        )  # fmt: skip
        return y, state

    def _matrix(self, reals: Tensor) -> Tensor:
        if not self.settings.is_complex:
            return reals
        return torch.complex(*reals.to(widened(reals.dtype)).chunk(2, -1))


class S6(SelectiveSSM):
    """The selective SSM as a sequence operator: what S4 and Hyena can stand in for."""

    def __init__(self, config: SelectiveSettings, d: int) -> None:
        super().__init__()
        self.define(config, d)

    def initialise(self, generator: Generator) -> None:
        """x_proj by its fan-in, then the rest as in Mamba."""
        if self.x_proj is not None:
            initialise_by_fan_in(self.x_proj, generator)
        self.initialise_ssm(generator)

    def forward(
        self, u: Float[Tensor, "b l d"], state: Inexact[Tensor, "b d n"] | None, backend: str | None
    ) -> tuple[Float[Tensor, "b l d"], Inexact[Tensor, "b d n"]]:
        """The outputs of a chunk from this state (zeros for None), and the state after it."""
        return self.scan(u, None, state, None, backend)
