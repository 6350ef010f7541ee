"""The blocks about a sequence operator in the Mamba paper's table 1: none to speak of, and Mamba's own."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Inexact, Int64
from torch import Generator, Tensor, nn

from ..ext import causal_conv1d
from .architectures import SequenceConfig
from .branches import HalvedLinear, taken
from .layers import gated, initialise_by_fan_in, initialise_residual
from .operators import make_operator


class Ungated(nn.Module):
    """The operator, GELU, and a linear map over the channels: S4's own layer, without its gate."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.operator = make_operator(config, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def initialise(self, config: SequenceConfig, generator: Generator) -> None:
        """The operator as it draws itself; out_proj as a residual branch."""
        self.operator.initialise(generator)
        initialise_residual(self.out_proj, config.n_layer, generator)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        conv_state: Float[Tensor, "b 0 d"] | None,
        scan_state: Inexact[Tensor, "b d n"] | None,
        backend: str | None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"] | Float[Tensor, "p d"], Float[Tensor, "b 0 d"], Inexact[Tensor, "b d n"] | None]:
        """Mix a chunk from this state (zeros for None); without a convolution, the first state is empty.

        at  flat positions of the outputs that are wanted; None: all
        """
        y, scan_state = self.operator(x, scan_state, backend)
        return self.out_proj(F.gelu(taken(y, at))), x[:, :0], scan_state

    def empty_states(self, batch: int) -> tuple[Tensor, Tensor]:
        """The two states of `batch` rows that have read nothing."""
        weight = self.out_proj.weight
        return weight.new_zeros(batch, 0, len(weight)), self.operator.empty_state(batch)


class Gated(nn.Module):
    """The Mamba block (figure 3) about another operator than S6: projections, convolution, SiLU, operator, gate."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        d = config.expand * config.d_model
        self.in_proj = HalvedLinear(config.d_model, 2 * d, bias=False)
        self.conv1d = nn.Conv1d(d, d, config.d_conv, groups=d)
        self.operator = make_operator(config, d)
        self.out_proj = nn.Linear(d, config.d_model, bias=False)

    def initialise(self, config: SequenceConfig, generator: Generator) -> None:
        """Linear maps and convolution by their fan-in; out_proj as a residual branch."""
        initialise_by_fan_in(self.in_proj, generator)
        initialise_by_fan_in(self.conv1d, generator)
        self.operator.initialise(generator)
        initialise_residual(self.out_proj, config.n_layer, generator)

    def forward(
        self,
        x: Float[Tensor, "b l m"],
        conv_state: Float[Tensor, "b j d"] | None,
        scan_state: Inexact[Tensor, "b d n"] | None,
        backend: str | None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"] | Float[Tensor, "p m"], Float[Tensor, "b j d"], Inexact[Tensor, "b d n"] | None]:
        """Mix a chunk from these states (zeros for None); give the output, at these flat positions, and the states."""
        u, z = self.in_proj.halves(x, at)
        u, conv_state = causal_conv1d(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu", initial_state=conv_state,
            return_final_state=True, backend=backend,
        )  # fmt: skip
        y, scan_state = self.operator(u, scan_state, backend)
        return self.out_proj(gated(taken(y, at), z)), conv_state, scan_state

    def empty_states(self, batch: int) -> tuple[Tensor, Tensor]:
        """The two states of `batch` rows that have read nothing."""
        d, _, k = self.conv1d.weight.shape
        return self.conv1d.weight.new_zeros(batch, k - 1, d), self.operator.empty_state(batch)
