"""Mamba: the block and the language model, whose forward, chunks and steps share one discretisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Inexact, Int32, Int64
from torch import Generator, Tensor, nn

from ..ext import causal_conv1d, step_
from .branches import HalvedLinear, taken, with_rows
from .layers import (
    DeltaProjection,
    Embedding,
    RMSNorm,
    gated,
    initialise_by_fan_in,
    initialise_residual,
    widened,
)
from .registry import MambaConfig
from .s6 import SelectiveSSM


@dataclass(frozen=True)
class State:
    """What a model remembers of each row's past: per layer the last inputs of the conv and the state of the scan.

    conv: (b k-1 d) in the weights' dtype; scan: (b d n) in float32 (float64 for a float64 model; complex with A).
    """

    conv: tuple[Float[Tensor, "b j d"], ...]
    scan: tuple[Inexact[Tensor, "b d n"], ...]

    def rows(self, index: Sequence[int] | Int64[Tensor, " p"]) -> State:
        """The states of these rows, in this order, repeats allowed: always a copy, which `step` may overwrite."""
        where = torch.as_tensor(index, dtype=torch.int64, device=self.scan[0].device)
        return State(
            tuple(state.index_select(0, where) for state in self.conv),
            tuple(state.index_select(0, where) for state in self.scan),
        )

    def check(self, rows: int, layers: int) -> None:
        """ValueError unless it is of so many rows, in a model of so many layers."""
        if len(self) != rows or len(self.scan) != layers:
            raise ValueError(
                f"the state has {len(self)} rows of {len(self.scan)} layers, "
                f"where the input has {rows} and the model {layers}"
            )

    def __len__(self) -> int:
        return self.scan[0].shape[0]


class MambaMixer(SelectiveSSM):
    """The sequence mixer of one layer (Mamba, figure 3 and algorithm 2): projections around the conv and the scan."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        d = config.d_inner
        self.in_proj = HalvedLinear(config.d_model, 2 * d, bias=config.bias)
        self.conv1d = nn.Conv1d(d, d, config.d_conv, groups=d, bias=config.conv_bias)
        self.define(config, d)
        self.out_proj = nn.Linear(d, config.d_model, bias=config.bias)

    @torch.no_grad()
    def initialise(self, config: MambaConfig, generator: Generator) -> None:
        """Linear maps by their fan-in, out_proj over sqrt(n_layer): one residual branch a layer; then the SSM."""
        for module in (self.in_proj, self.conv1d, self.x_proj):
            if module is not None:
                initialise_by_fan_in(module, generator)
        if self.in_proj.bias is not None:
            self.in_proj.bias.zero_()
        initialise_residual(self.out_proj, config.n_layer, generator)
        self.initialise_ssm(generator)

    def forward(
        self,
        x: Float[Tensor, "b l m"],
        conv_state: Float[Tensor, "s j d"] | None,
        scan_state: Inexact[Tensor, "s d n"] | None,
        cu_seqlens: Int32[Tensor, " s_plus_1"] | None,
        backend: str | None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"] | Float[Tensor, "p m"], Float[Tensor, "s j d"], Inexact[Tensor, "s d n"]]:
        """Mix a chunk from these states (zeros for None); give the output, at these flat positions, and the states."""
        u, z = self.in_proj.halves(x, at)
        u, conv_state = causal_conv1d(
            u, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu", initial_state=conv_state,
            cu_seqlens=cu_seqlens, return_final_state=True, backend=backend,
        )  # fmt: skip
        if at is None:
            y, scan_state = self.scan(u, z, scan_state, cu_seqlens, backend)
        else:
            y, scan_state = self.scan(u, None, scan_state, cu_seqlens, backend)
            y = gated(taken(y, at), z)
        return self.out_proj(y), conv_state, scan_state

    def step(
        self,
        x: Float[Tensor, "b m"],
        conv_state: Float[Tensor, "b j d"],
        scan_state: Inexact[Tensor, "b d n"],
        backend: str | None,
    ) -> Float[Tensor, "b m"]:
        """Mix one token a row, both states advanced in place."""
        if self.settings.is_complex:
            # The op's rows of x_proj are real.
            mixed, conv_after, scan_after = self(x[:, None], conv_state, scan_state, None, backend)
            conv_state.copy_(conv_after)
            scan_state.copy_(scan_after)
            return mixed[:, 0]
        u, z = self.in_proj.halves(x)
        y = step_(
            u, z, self.conv1d.weight.squeeze(1), self.conv1d.bias,
            u.new_empty(0, u.shape[1]) if self.x_proj is None else self.x_proj.weight,
            self.dt_proj.weight if isinstance(self.dt_proj, DeltaProjection) else None,
            self.A, self.D, self.dt_proj.bias, conv_state, scan_state, B=self.B, C=self.C,
            discretisation=self.discretisation, backend=backend,
        )  # fmt: skip
        return self.out_proj(y)


class MambaBlock(nn.Module):
    """One layer of the residual stream: residual + mixer(norm(residual))."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.mixer = MambaMixer(config)

    def forward(
        self,
        residual: Float[Tensor, "b l m"],
        conv_state: Float[Tensor, "s j d"] | None = None,
        scan_state: Inexact[Tensor, "s d n"] | None = None,
        cu_seqlens: Int32[Tensor, " s_plus_1"] | None = None,
        backend: str | None = None,
        at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"] | Float[Tensor, "p m"], Float[Tensor, "s j d"], Inexact[Tensor, "s d n"]]:
        """The residual stream after this layer, at these flat positions, and the layer's states after the chunk."""
        residual, rows = with_rows(residual, at)
        mixed, *states = self.mixer(self.norm(residual, backend), conv_state, scan_state, cu_seqlens, backend, at)
        return rows + mixed, *states

    def step(
        self,
        residual: Float[Tensor, "b m"],
        conv_state: Float[Tensor, "b j d"],
        scan_state: Inexact[Tensor, "b d n"],
        backend: str | None = None,
    ) -> Float[Tensor, "b m"]:
        """The residual stream of one more token a row, both states advanced in place."""
        return residual + self.mixer.step(self.norm(residual, backend), conv_state, scan_state, backend)


class _Backbone(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(MambaBlock(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)


class Mamba(nn.Module):
    """The language model of the paper, its parameters named as in the published mamba_ssm checkpoints.

    Drawn on the CPU from `seed` as the original is initialised; `seed=None` leaves the parameters on the meta device.
    A_log, D, the Δ bias, the residual stream and scan states are float32 whatever `.to(dtype)` makes of the rest.
    `backend` names a row of `ext.backends`; None lets it pick.
    """

    carries_state = True

    def __init__(self, config: MambaConfig, *, seed: int | None = 0, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        with torch.device("meta"):
            self.backbone = _Backbone(config)
            self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self.tie_weights()
        if seed is not None:
            self.to_empty(device="cpu")
            self.initialise(Generator().manual_seed(seed))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        """Draw every parameter anew, as the released code does, from `generator` on the parameters' device.

        Source: github.com/state-spaces/mamba, mixer_seq_simple.py and mamba_simple.py (Mamba, section 3.6).
        """
        self.backbone.embedding.weight.normal_(0, 0.02, generator=generator)
        for block in self.layers:
            block.norm.weight.fill_(1)
            block.mixer.initialise(self.config, generator)
        self.backbone.norm_f.weight.fill_(1)
        if not self.config.tie_embeddings:
            initialise_by_fan_in(self.lm_head, generator)

    def forward(
        self,
        tokens: Int64[Tensor, "b l"],
        *,
        state: State | None = None,
        cu_seqlens: Int32[Tensor, " s_plus_1"] | None = None,
        logits_at: Int64[Tensor, " p"] | None = None,
    ) -> tuple[Float[Tensor, "b l v"] | Float[Tensor, "p v"], State]:
        """Logits in the weights' dtype, and the state after the last token of each row (of each packed sequence).

        `state` is where the rows start from, and is left as it is. `logits_at` are flat positions in
        `tokens.reshape(-1)`: only their logits are computed, (p v); None computes all.
        """
        if state is not None:
            state.check(len(tokens) if cu_seqlens is None else len(cu_seqlens) - 1, self.config.n_layer)
        residual = self._embed(tokens)
        conv, scan = [], []
        for i, block in enumerate(self.layers):
            before = (None, None) if state is None else (state.conv[i], state.scan[i])
            # Of the last layer nothing else is read.
            at = logits_at if i == self.config.n_layer - 1 else None
            residual, conv_state, scan_state = block(residual, *before, cu_seqlens, self.backend, at)
            conv.append(conv_state)
            scan.append(scan_state)
        return self.lm_head(self.backbone.norm_f(residual, self.backend)), State(tuple(conv), tuple(scan))

    @torch.no_grad()
    def step(self, tokens: Int64[Tensor, " b"], state: State) -> Float[Tensor, "b v"]:
        """Logits after one more token a row; `state` is advanced in place. Takes no gradient."""
        state.check(len(tokens), self.config.n_layer)
        residual = self._embed(tokens)
        for block, conv, scan in zip(self.layers, state.conv, state.scan, strict=True):
            residual = block.step(residual, conv, scan, self.backend)
        return self.lm_head(self.backbone.norm_f(residual, self.backend))

    def empty_state(self, batch: int) -> State:
        """The state of `batch` rows that have read nothing, on the model's device."""
        conv = (batch, self.config.d_conv - 1, self.config.d_inner)
        return State(
            tuple(self.lm_head.weight.new_zeros(conv) for _ in self.layers),
            tuple(block.mixer.empty_state(batch) for block in self.layers),
        )

    @property
    def layers(self) -> list[MambaBlock]:
        """The layers in order."""
        return cast("list[MambaBlock]", list(self.backbone.layers))

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded = self.backbone.embedding(tokens)
        return embedded.to(widened(embedded.dtype))

    def tie_weights(self) -> None:
        """Make the head the embedding, where the config ties them."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mamba:
        # Leaving the meta device gives each module a parameter of its own.
        super()._apply(fn, recurse)
        self.tie_weights()
        return self
