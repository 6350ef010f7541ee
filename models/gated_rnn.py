"""The gated RNN that a selective SSM becomes with one real state a channel (Mamba, Theorem 1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GatedRNN(nn.Module):
    """g_t = σ(W x_t + b),  h_t = (1 - g_t) h_{t-1} + g_t x_t: one gate a channel, one step at a time.

    It is the selective SSM with n = 1, A = -1, B = C = 1 and Δ = softplus(W x + b) under ZOH, because
    exp(-softplus(a)) = 1 - σ(a) (Mamba, appendix C).
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "b l d"], state: Float[Tensor, "b d"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        """Every h, and the last, from this state (zeros for None)."""
        h = torch.zeros_like(x[:, 0]) if state is None else state
        outputs = []
        for x_t, gate in zip(x.unbind(1), torch.sigmoid(self.gate(x)).unbind(1), strict=True):
            h = (1 - gate) * h + gate * x_t
            outputs.append(h)
        return torch.stack(outputs, 1), h
