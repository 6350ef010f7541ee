"""The scans that ours is timed beside: each as its own project calls it, each able to say why it can't run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bench import Call
from .bench_inputs import Inputs
from .errors import one_line

Scan = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One other implementation of what is timed: here the scan, in bench_model_peers a whole model.

    timed           what a call computes, for the reader of the table
    distribution    what has to be installed, or None
    load            the scan itself, which takes the tensors of bench_inputs.Inputs in their order (of a model, what
                    builds it from ours); raises ImportError where it is not to be had
    channel_first   u, delta, z and y are (b d l), B and C (b n l): made so before the clock starts, as in its project
    contiguous      all of them lie so in memory, z, B and C too, which are otherwise transposed views
    copies          whole (b l d n) float32 tensors alive at once in a forward pass, and in forward + backward
    growth          its time grows with l to these powers, forward and with the backward pass
    """

    name: str
    timed: str
    distribution: str | None
    load: Callable[[], Callable[..., Any]]
    channel_first: bool = False
    contiguous: bool = False
    copies: tuple[int, int] = (0, 0)
    growth: tuple[int, int] = (1, 1)

    def missing(self) -> str | None:
        """Why it can't run here, in one line; None when it can."""
        try:
            self.load()
        except (ImportError, AttributeError) as error:
            return one_line(error)
        return None

    def backend(self) -> str:
        """What computes it, with its version, for the record's provenance."""
        distribution = self.distribution or "torch"
        return f"{distribution} {metadata.version(distribution)}"

    def provenance(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """That of its records, given that of ours in the same run."""
        return {**ours, "backend": self.backend(), "kernel": None}


def torch_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The recurrence as one writes it down in torch: a Python loop over l that keeps one (b d n) state."""
    step = F.softplus(delta + delta_bias)
    h = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype)
    outputs = []
    for u_t, step_t, B_t, C_t in zip(u.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(step_t[..., None] * A) * h + (step_t * u_t)[..., None] * B_t[:, None]
        outputs.append((h * C_t[:, None]).sum(-1))
    return ((torch.stack(outputs, 1) + D * u) * F.silu(z)).to(u.dtype)


def _transformers_scan(**options: bool) -> Scan:
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.models.mamba import modeling_mamba

    scan = getattr(modeling_mamba, "mamba_selective_scan", None)
    if scan is None:
        raise ImportError("this transformers has no mamba_selective_scan")
    scan = inspect.unwrap(scan)

    def call(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        return scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True, **options)

    return call


def _transformers_with_mambapy() -> Scan:
    import mambapy.pscan  # noqa: F401  (without it transformers goes on with its own loop and says nothing)

    return _transformers_scan(use_mambapy=True)


def _mambapy_scan() -> Scan:
    from mambapy.mamba import MambaBlock

    # Written as a method, but it reads nothing of its block.
    scan: Any = MambaBlock.selective_scan

    def call(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        return scan(None, u, F.softplus(delta + delta_bias), A, B, C, D) * F.silu(z)

    return call


def _mamba_ssm_scan() -> Scan:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[reportMissingImports]

    scan: Any = selective_scan_fn

    def call(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        return scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True)

    return call


GPU_PEERS = (
    Peer(
        name="mamba_ssm",
        timed="selective_scan_fn on contiguous u, delta, z (b d l) and B, C (b n l)",
        distribution="mamba_ssm",
        load=_mamba_ssm_scan,
        channel_first=True,
        contiguous=True,
    ),
)
PEERS = (
    Peer(
        name="torch loop",
        timed="a plain Python loop over l in torch, one state alive",
        distribution=None,
        load=lambda: torch_loop,
        # Autograd keeps the decay, its input and both states of every step.
        copies=(1, 5),
    ),
    Peer(
        name="transformers",
        timed="modeling_mamba.mamba_selective_scan in plain torch, called on the layouts of MambaMixer.forward",
        distribution="transformers",
        load=_transformers_scan,
        channel_first=True,
        copies=(4, 12),
        # The gradient of each step's slice is a tensor as large as the whole.
        growth=(1, 2),
    ),
    Peer(
        name="transformers+mambapy",
        timed="the same with use_mambapy=True: mambapy's pscan in the place of the loop over l",
        distribution="transformers",
        load=_transformers_with_mambapy,
        channel_first=True,
        copies=(7, 12),
    ),
    Peer(
        name="mambapy",
        timed="MambaBlock.selective_scan (discretisation, then pscan), the softplus before it and the gate after it",
        distribution="mambapy",
        load=_mambapy_scan,
        copies=(6, 10),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An implementation with its tensors laid out as it wants them, ready to be checked and timed."""

    scan: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    dy: Tensor
    channel_first: bool

    @classmethod
    def of(cls, peer: Peer, inputs: Inputs, dy: Tensor) -> Candidate:
        tensors = inputs.tensors()
        if peer.channel_first:
            # What its own model hands over: u and delta come channel-first from a convolution and a product, z, B and
            # C as transposed views of projections.
            names = [f.name for f in fields(inputs)]
            lying = names if peer.contiguous else ("u", "delta")
            turned = [t.mT if t.dim() == 3 else t for t in tensors]
            tensors = tuple(t.contiguous() if n in lying else t for n, t in zip(names, turned, strict=True))
            dy = dy.mT.contiguous()
        return cls(scan=peer.load(), tensors=tensors, dy=dy, channel_first=peer.channel_first)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.scan(*self.tensors)

    def backward(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward, then the gradients of every input."""
        leaves = [t.detach().requires_grad_() for t in self.tensors]
        y = self.scan(*leaves)
        return y.detach(), torch.autograd.grad(y, leaves, self.dy)

    def call(self, backward: bool) -> Call:
        return self.backward if backward else self.forward

    def results(self, backward: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output and gradients in the axes of ext."""
        y, grads = self.backward() if backward else (self.forward(), ())
        if self.channel_first:
            return y.mT, tuple(g.mT if g.dim() == 3 else g for g in grads)
        return y, grads
