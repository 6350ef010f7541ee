"""Causal attention with many heads, and the positions it may be told: absolute, rotary and xPos."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from .architectures import SequenceConfig
from .branches import taken
from .layers import initialise_by_fan_in, initialise_residual

XPOS_SCALE, XPOS_GAMMA = 512, 0.4
# Half of this many positions away from the middle, xPos' scale nears the largest float32.
XPOS_LENGTH = 2**16


class Attention(nn.Module):
    """softmax(q k / sqrt(d_head)) v over the past and present, n_head heads, biases throughout (arXiv:1706.03762).

    "rotary" turns q and k by their positions (arXiv:2104.09864), "xpos" lets their products decay with distance as
    well (arXiv:2212.10554), up to 65,536 positions. There is no state: a sequence is read whole.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.n_head, self.positions = config.n_head, config.positions
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def initialise(self, config: SequenceConfig, generator: Generator) -> None:
        """Linear maps by their fan-in; out_proj as a residual branch."""
        initialise_by_fan_in(self.in_proj, generator)
        initialise_residual(self.out_proj, config.n_layer, generator)

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        conv_state: None,
        scan_state: None,
        backend: str | None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"] | Float[Tensor, "p d"], None, None]:
        """Mix a whole sequence, by torch's attention on any backend; ValueError past the positions there are.

        at  flat positions of the outputs that are wanted; None: all
        """
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, -1))
        if self.positions in ("rotary", "xpos"):
            q, k = placed(q, k, decays=self.positions == "xpos")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(taken(y.transpose(1, 2).flatten(2), at)), None, None


def placed(
    q: Float[Tensor, "b h l e"], k: Float[Tensor, "b h l e"], *, decays: bool
) -> tuple[Float[Tensor, "b h l e"], Float[Tensor, "b h l e"]]:
    """q and k turned by angles position · 10000^(-2i/e); under xPos also scaled by ζ_i^(±position / 512).

    ζ_i = (2i/e + 0.4) / 1.4, so that q·k falls with distance. Positions count from the middle, which leaves the
    products as they are and doubles the reach of float32.
    """
    length, e = q.shape[-2:]
    # Angles in float64, or they would lose their fraction at a million positions.
    i = torch.arange(0, e, 2, device=q.device, dtype=torch.float64) / e
    position = torch.arange(length, device=q.device, dtype=torch.float64)[:, None] - length // 2
    angle = position * 10000**-i
    cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
    if not decays:
        return _turned(q, cos, sin), _turned(k, cos, sin)
    if length > XPOS_LENGTH:
        raise ValueError(f"xpos has {XPOS_LENGTH} positions, not {length}: its decay leaves the range of float32")
    scale = ((i + XPOS_GAMMA) / (1 + XPOS_GAMMA)) ** (position / XPOS_SCALE)
    grown, shrunk = scale.to(q.dtype), (1 / scale).to(q.dtype)
    return _turned(q, cos * grown, sin * grown), _turned(k, cos * shrunk, sin * shrunk)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + e/2}) as a point in the plane, turned."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class LearntPositions(nn.Module):
    """A vector a position, learnt, for absolute attention.

    A position that training never reached keeps the vector it was drawn with; one beyond the table is a ValueError.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_length, config.d_model))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """As the embedding of tokens is drawn."""
        self.weight.normal_(0, 0.02, generator=generator)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        if x.shape[1] > len(self.weight):
            raise ValueError(f"absolute positions end at max_length = {len(self.weight)}, before {x.shape[1]} tokens")
        return x + self.weight[: x.shape[1]]


class SinusoidalPositions(nn.Module):
    """A vector of sines and cosines a position, not learnt, for any length (arXiv:1706.03762, section 3.5)."""

    def initialise(self, generator: Generator) -> None:
        """Nothing to draw."""

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        length, d = x.shape[1:]
        i = torch.arange(0, d, 2, device=x.device, dtype=torch.float64) / d
        angle = torch.arange(length, device=x.device, dtype=torch.float64)[:, None] * 10000**-i
        # At the scale of the embedding of tokens, which is drawn at 0.02.
        return x + 0.02 * math.sqrt(2) * torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)


POSITIONS = {"absolute": LearntPositions, "sinusoidal": lambda config: SinusoidalPositions()}
