"""Hyena's long convolution, whose filter is a small network of the position (Poli et al. 2023, arXiv:2302.10866)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from .architectures import SequenceConfig
from .layers import initialise_by_fan_in
from .long_conv import causal_convolution, through

FREQUENCY = 10.0
FLOOR, FASTEST, SLOWEST = 1e-2, 0.3, 1.5


class Hyena(nn.Module):
    """y = kernel * u + D u in each channel: kernel_t = window(t) · network(encoding(t)), t = k / filter_length.

    The encoding is t with cosines and sines of it, and the network has sine activations (section 3.3). The window
    exp(-a t) falls to 1 % between t = 0.3 and t = 1.5, at another place in each channel.
    Nothing here is a table of positions, so any length has a kernel: beyond `filter_length` t goes on past 1 by the
    same formulas, into encodings that training on shorter inputs has not seen, under a window that keeps falling.
    There is no state: a sequence is read whole.
    """

    def __init__(self, config: SequenceConfig, d: int) -> None:
        super().__init__()
        width, self.features, self.unit = config.filter_width, config.filter_features, config.filter_length
        self.layers = nn.ModuleList(nn.Linear(inner, width) for inner in (self.features, width, width))
        self.frequency = nn.Parameter(torch.empty(width))
        self.readout = nn.Linear(width, d, bias=False)
        self.D = nn.Parameter(torch.empty(d))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """Linear maps by their fan-in; the sines' frequencies all alike; D standard normal."""
        for linear in (*self.layers, self.readout):
            assert isinstance(linear, nn.Linear)
            initialise_by_fan_in(linear, generator)
        self.frequency.fill_(FREQUENCY)
        self.D.normal_(generator=generator)

    def kernel(self, length: int) -> Float[Tensor, "d l"]:
        """The filter at positions 0 … length - 1."""
        like = self.D
        t = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] / self.unit
        x = self._encoding(t)
        for linear in self.layers:
            x = torch.sin(self.frequency * linear(x))
        rates = torch.linspace(1 / FASTEST, 1 / SLOWEST, len(like), device=like.device, dtype=like.dtype)
        return (self.readout(x) * torch.exp(math.log(FLOOR) * rates * t)).mT

    def forward(
        self, u: Float[Tensor, "b l d"], state: None, backend: str | None
    ) -> tuple[Float[Tensor, "b l d"], None]:
        """The outputs of a whole sequence. One way on any backend."""
        # A filter of 16 bits would be a noisy one at every length.
        with torch.autocast(u.device.type, enabled=False):
            kernel = through(self.kernel(u.shape[1]), self.D)
        return causal_convolution(u, kernel), None

    def _encoding(self, t: Tensor) -> Tensor:
        """t, and the cosine and sine of 2πft for frequencies f from 1e-4 to one less than their number."""
        bands = (self.features - 1) // 2
        phase = 2 * math.pi * t * torch.linspace(1e-4, max(bands - 1, 1e-4), bands, device=t.device, dtype=t.dtype)
        return torch.cat([t, torch.cos(phase), -torch.sin(phase)], -1)
