"""The H3 block (Fu et al. 2022, arXiv:2212.14052): a shift SSM on the keys, and an operator between two gates."""

from __future__ import annotations

from jaxtyping import Float, Inexact, Int64
from torch import Generator, Tensor, nn

from ..ext import causal_conv1d
from .architectures import SequenceConfig
from .branches import taken
from .layers import initialise_by_fan_in, initialise_residual
from .operators import make_operator


class H3(nn.Module):
    """q · operator(shift(k) · v), then a linear map; heads of width 1, as in the paper's own code.

    The shift SSM, whose state is the last inputs, is a causal convolution of `d_conv` taps on each channel. With the
    operator S4 it is H3; with Hyena's filter, Hyena of order 2 as the Mamba paper frames it (section 2).
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        d = config.d_model
        self.in_proj = nn.Linear(d, 3 * d)
        self.shift = nn.Conv1d(d, d, config.d_conv, groups=d, bias=False)
        self.operator = make_operator(config, d)
        self.out_proj = nn.Linear(d, d)

    def initialise(self, config: SequenceConfig, generator: Generator) -> None:
        """Linear maps and shift by their fan-in; out_proj as a residual branch."""
        initialise_by_fan_in(self.in_proj, generator)
        initialise_by_fan_in(self.shift, generator)
        self.operator.initialise(generator)
        initialise_residual(self.out_proj, config.n_layer, generator)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        conv_state: Float[Tensor, "b j d"] | None,
        scan_state: Inexact[Tensor, "b d n"] | None,
        backend: str | None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"] | Float[Tensor, "p d"], Float[Tensor, "b j d"], Inexact[Tensor, "b d n"] | None]:
        """Mix a chunk from these states (zeros for None); give the output, at these flat positions, and the states."""
        q, k, v = self.in_proj(x).chunk(3, -1)
        k, conv_state = causal_conv1d(
            k, self.shift.weight.squeeze(1), initial_state=conv_state, return_final_state=True, backend=backend
        )
        y, scan_state = self.operator(k * v, scan_state, backend)
        return self.out_proj(taken(q, at) * taken(y, at)), conv_state, scan_state

    def empty_states(self, batch: int) -> tuple[Tensor, Tensor]:
        """The two states of `batch` rows that have read nothing."""
        d, _, k = self.shift.weight.shape
        return self.shift.weight.new_zeros(batch, k - 1, d), self.operator.empty_state(batch)
