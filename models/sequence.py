"""One host for every mixer but Mamba's own: an embedding, layers on a residual stream, a norm and a head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from .architectures import SequenceConfig, mixer
from .attention import POSITIONS
from .branches import with_rows
from .layers import Embedding, RMSNorm, initialise_by_fan_in
from .mamba import State
from .operators import make_block


class Layer(nn.Module):
    """residual + mixer(norm(residual))."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.mixer: Any = make_block(config)

    def forward(
        self,
        residual: Tensor,
        conv_state: Tensor | None,
        scan_state: Tensor | None,
        backend: str | None,
        at: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The residual stream after this layer, at these flat positions, and the mixer's states after the chunk."""
        residual, rows = with_rows(residual, at)
        mixed, *states = self.mixer(self.norm(residual, backend), conv_state, scan_state, backend, at)
        return rows + mixed, *states


class SequenceModel(nn.Module):
    """The model of a SequenceConfig, drawn on the CPU from `seed`; None leaves the parameters on the meta device.

    In float32, or float64 after `.double()`. `backend` names a row of `ext.backends`; None lets it pick.
    """

    def __init__(self, config: SequenceConfig, *, seed: int | None = 0, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.carries_state = mixer(config.mixer).carries_state
        reads_positions = config.mixer == "attention" and config.positions in POSITIONS
        with torch.device("meta"):
            self.embedding = Embedding(config.vocab_size, config.d_model)
            self.positions = POSITIONS[config.positions](config) if reads_positions else None
            self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
            self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if seed is not None:
            self.to_empty(device="cpu")
            self.initialise(Generator().manual_seed(seed))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """Draw every parameter anew from `generator`: embeddings normal(0, 0.02), the head by its fan-in."""
        self.embedding.weight.normal_(0, 0.02, generator=generator)
        if self.positions is not None:
            self.positions.initialise(generator)
        for layer in self._layers:
            layer.norm.weight.fill_(1)
            layer.mixer.initialise(self.config, generator)
        self.norm_f.weight.fill_(1)
        initialise_by_fan_in(self.lm_head, generator)

    def forward(
        self,
        tokens: Int64[Tensor, "b l"],
        *,
        state: State | None = None,
        logits_at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l v"] | Float[Tensor, "p v"], State | None]:
        """Logits, and the state after the last token of each row; None where the mixer carries none.

        `state` is where the rows start from, and is left as it is: a ValueError for a mixer without one. `logits_at`
        are flat positions in `tokens.reshape(-1)`: only their logits are computed, (p v); None computes all.
        """
        if state is not None:
            self._require_carried()
            state.check(len(tokens), self.config.n_layer)
        residual = self.embedding(tokens)
        if self.positions is not None:
            residual = self.positions(residual)
        after = []
        for i, layer in enumerate(self._layers):
            before = (None, None) if state is None else (state.conv[i], state.scan[i])
            # Of the last layer nothing else is read.
            at = logits_at if i == self.config.n_layer - 1 else None
            residual, *states = layer(residual, *before, self.backend, at)
            after.append(states)
        logits = self.lm_head(self.norm_f(residual, self.backend))
        return logits, State(*zip(*after, strict=True)) if self.carries_state else None

    @torch.no_grad()
    def step(self, tokens: Int64[Tensor, " b"], state: State) -> Float[Tensor, "b v"]:
        """Logits after one more token a row; `state` is advanced in place. Takes no gradient."""
        logits, after = self(tokens[:, None], state=state)
        for kept, new in zip((*state.conv, *state.scan), (*after.conv, *after.scan), strict=True):
            kept.copy_(new)
        return logits[:, 0]

    def empty_state(self, batch: int) -> State:
        """The state of `batch` rows that have read nothing, on the model's device; ValueError where there is none."""
        self._require_carried()
        states = [layer.mixer.empty_states(batch) for layer in self._layers]
        return State(*zip(*states, strict=True))

    @property
    def _layers(self) -> list[Any]:
        return list(self.layers)

    def _require_carried(self) -> None:
        if not self.carries_state:
            raise ValueError(f"{self.config.mixer} carries no state: it reads a sequence whole")
